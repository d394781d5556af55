"""How often the processes of a run ask each other whether to end."""

from types import SimpleNamespace

from facelit.speed.signals import space_out_sigterm_checks


class Loop:
    def __init__(self) -> None:
        self.asked_at: list[int] = []
        self.batch = 0

    def _broadcast_sigterm_tensor(self) -> None:
        self.asked_at.append(self.batch)

    def run(self, batches: int) -> list[int]:
        for self.batch in range(batches):
            self._broadcast_sigterm_tensor()
        return self.asked_at


def trainer(loop: Loop, world_size: int = 2) -> SimpleNamespace:
    return SimpleNamespace(world_size=world_size, fit_loop=SimpleNamespace(epoch_loop=loop))


def test_before_the_first_batch_and_every_so_many() -> None:
    loop = Loop()
    space_out_sigterm_checks(trainer(loop), every=4)
    assert loop.run(10) == [0, 4, 8]


def test_a_second_fit_asks_as_often() -> None:
    loop = Loop()
    for _ in range(2):
        space_out_sigterm_checks(trainer(loop), every=4)
    assert loop.run(10) == [0, 4, 8]


def test_one_process_is_left_alone() -> None:
    loop = Loop()
    space_out_sigterm_checks(trainer(loop, world_size=1), every=4)
    assert loop.run(3) == [0, 1, 2]


def test_every_zero_means_always() -> None:
    """`log_every_n_steps: 0` logs nothing."""
    loop = Loop()
    space_out_sigterm_checks(trainer(loop), every=0)
    assert loop.run(3) == [0, 1, 2]
