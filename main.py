"""`python main.py fit --config configs/center.yaml`: hands over to `facelit.cli`."""

from facelit.cli import main

if __name__ == "__main__":
    main()
