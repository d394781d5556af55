"""Outside people, all of LFW and CFP."""
