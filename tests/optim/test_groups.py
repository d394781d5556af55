"""Weight decay that spares norms and biases: whom it spares, and what a resumed run makes of it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from facelit.backbones import VGG16, IResNet
from facelit.cli import main
from facelit.heads import SoftmaxHead
from facelit.optim import parameter_groups
from tiny_run import make_run

NORMS_AND_SLOPES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.PReLU)


def spared_by_kind(network: nn.Module) -> dict[str, Tensor]:
    """What belongs to a norm or a PReLU, or is called bias."""
    spared = {}
    for place, module in network.named_modules():
        for name, parameter in module.named_parameters(prefix=place, recurse=False):
            if parameter.requires_grad and (isinstance(module, NORMS_AND_SLOPES) or name.endswith("bias")):
                spared[name] = parameter
    return spared


@pytest.fixture(
    params=[
        lambda: VGG16(embedding_dim=8, width=0.01, batch_norm=True),
        lambda: IResNet(18, embedding_dim=8, width=0.125),
        lambda: SoftmaxHead(5, 8),
        lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.PReLU(), nn.Conv1d(4, 4, 1), nn.GroupNorm(2, 4)),
    ],
    ids=["VGG16", "IResNet", "softmax head", "other norms"],
)
def network(request: pytest.FixtureRequest) -> nn.Module:
    made: nn.Module = request.param()
    return made


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_a_step_without_gradient_shrinks_the_others_alone(
    network: nn.Module, optimizer: type[torch.optim.SGD] | type[torch.optim.AdamW]
) -> None:
    spared = spared_by_kind(network)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    groups = parameter_groups(network.parameters(), decay_norms_and_biases=False)
    optimizer(groups, lr=0.5, weight_decay=0.1).step()
    for name, parameter in network.named_parameters():
        kept = 1.0 if name in spared or not parameter.requires_grad else 1 - 0.5 * 0.1
        torch.testing.assert_close(parameter.detach(), kept * before[name], msg=name)


def test_every_parameter_is_in_one_group(network: nn.Module) -> None:
    wanted = {id(parameter) for parameter in network.parameters() if parameter.requires_grad}
    groups = parameter_groups(network.parameters(), decay_norms_and_biases=False)
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(found) == len(wanted)
    assert set(found) == wanted
    assert [id(one) for one in parameter_groups(network.parameters(), decay_norms_and_biases=True)] == [
        id(parameter) for parameter in network.parameters() if parameter.requires_grad
    ]


def test_no_group_is_empty() -> None:
    """An optimizer may look at the first parameter of each."""
    weights, biases = [torch.zeros(2, 2, requires_grad=True)], [torch.zeros(2, requires_grad=True)]
    for some in (weights, biases):
        (group,) = parameter_groups(some, decay_norms_and_biases=False)
        assert group["params"] == some


def test_a_resumed_run_keeps_its_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The optimizer's state goes by places: in other groups each momentum would be another parameter's."""
    options = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.01}}
    config = make_run(tmp_path, model__optimizer=options, model__decay_norms_and_biases=False, data__verification=None)
    main(["fit", "--config", str(config), "--trainer.max_epochs", "1"])
    (path,) = tmp_path.glob("**/last.ckpt")
    groups = torch.load(path, weights_only=True)["optimizer_states"][0]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]
    resume = ["fit", "--config", str(config), "--ckpt_path", str(path), "--trainer.max_epochs", "2"]
    with pytest.raises(SystemExit):
        main([*resume, "--model.decay_norms_and_biases", "true"])
    assert "keeps model.decay_norms_and_biases as it was" in capsys.readouterr().err
    main(resume)
    newest = max(tmp_path.glob("**/last.ckpt"), key=lambda path: path.stat().st_mtime)
    assert torch.load(newest, weights_only=True)["global_step"] == 12
