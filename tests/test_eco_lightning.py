"""Lightning: the callback converts what configure_model made, and a run resumes with the same bits."""

import pytest
import torch
from checks import same_bits
from torch import nn as tnn

from rad_kernels import Sketch, nn

pl = pytest.importorskip("lightning.pytorch", reason="requirements/ecosystem.txt is not installed")

from rad_kernels.integrations.lightning import Convert  # noqa: E402

QUARTER = Sketch(0.25)
INPUTS = torch.randn(256, 16, generator=torch.Generator().manual_seed(1))
TARGETS = INPUTS.flip(1).abs()


class Regression(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = None
        self.converted = []

    def configure_model(self):
        if self.net is None:
            torch.manual_seed(2)
            self.net = tnn.Sequential(tnn.Linear(16, 64), tnn.GELU(), tnn.Linear(64, 16), tnn.Linear(16, 16))

    def training_step(self, batch, _):
        self.converted.append(type(self.net[0]) is nn.Linear)
        return (self.net(batch[0]) - batch[1]).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)

    def train_dataloader(self):
        dataset = torch.utils.data.TensorDataset(INPUTS, TARGETS)
        return torch.utils.data.DataLoader(dataset, batch_size=64, generator=torch.Generator())


class Generators(pl.Callback):
    """Lightning's checkpoints leave the state of torch's generator out; samples are drawn from it."""

    def state_dict(self):
        return {"torch": torch.get_rng_state()}

    def load_state_dict(self, state):
        self.state = state["torch"]

    def on_train_start(self, trainer, pl_module):
        if hasattr(self, "state"):
            torch.set_rng_state(self.state)


def fitted(folder, epochs, resume=None, callback=None, **settings):
    module = Regression()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        default_root_dir=folder,
        enable_checkpointing=False,
        callbacks=[callback or Convert(QUARTER, "net", include=["0", "2", "1"]), Generators()],
        **quiet,
        **settings,
    )
    torch.manual_seed(3)
    trainer.fit(module, ckpt_path=resume)
    trainer.save_checkpoint(folder / f"{epochs}.ckpt")
    return module


@pytest.mark.filterwarnings("ignore")
def test_training_and_resuming(tmp_path):
    whole = fitted(tmp_path, 4)
    assert whole.converted and all(whole.converted)
    assert type(whole.net[0]) is tnn.Linear  # restored afterwards
    with torch.no_grad():
        start = (TARGETS.square()).mean()
        assert (whole.net(INPUTS) - TARGETS).square().mean() < 0.5 * start
    fitted(tmp_path, 2)
    resumed = fitted(tmp_path, 4, resume=tmp_path / "2.ckpt")
    assert all(map(same_bits, resumed.parameters(), whole.parameters()))


@pytest.mark.filterwarnings("ignore")
def test_mixed_precision_and_options(tmp_path):
    stay = Convert(QUARTER, "net", restore=False, exclude="0", example_inputs=INPUTS[:64])
    module = fitted(tmp_path, 1, callback=stay, precision="bf16-mixed")
    assert type(module.net[0]) is tnn.Linear and type(module.net[2]) is nn.Linear
    assert module.net.rad_report.after < module.net.rad_report.before
    with pytest.raises(AttributeError, match="has no attribute `body`"):
        fitted(tmp_path, 1, callback=Convert(QUARTER, "body"))
