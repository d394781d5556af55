"""What a resumed run draws; the runs themselves are compared in test_stop_signals.py."""

import torch

from facelit.callbacks.random_state import STATE_KEY, RandomState


def saved(random_state: RandomState) -> torch.Tensor:
    own: dict[str, dict[str, torch.Tensor]] = {}
    random_state.save_into(own, torch.device("cpu"))
    return own[STATE_KEY]["cpu"]


def test_a_checkpoint_written_before_the_first_step_of_a_resumed_run() -> None:
    """After a validation that it made up: setting the run up has drawn numbers."""
    random_state = RandomState()
    interrupted = torch.manual_seed(3).get_state()
    random_state.resume_from({STATE_KEY: {"cpu": interrupted}})
    fresh = torch.manual_seed(4).get_state()
    assert torch.equal(saved(random_state), interrupted)
    random_state.on_train_batch_start(None, None, None, 0)  # type: ignore[arg-type]  # on a CPU it looks at none of them
    assert torch.equal(torch.get_rng_state(), interrupted)
    torch.set_rng_state(fresh)
    assert torch.equal(saved(random_state), fresh)
