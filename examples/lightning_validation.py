"""Lightning: a callback compiles the network when training ends, and ``validate`` runs the compiled one.

    python examples/lightning_validation.py

The compiled network is a submodule like any other: it is moved, put in eval mode and saved with its LightningModule.
"""

from __future__ import annotations

import tempfile

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import torchtrt_bridge as ttb

CLASSES, BATCH, WIDTH = 5, 32, 20


class Classifier(L.LightningModule):
    """A network, its loss and its accuracy."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.network(x), y)

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        x, y = batch
        scores = self.network(x)
        self.log("loss", nn.functional.cross_entropy(scores, y))
        self.log("accuracy", (scores.argmax(1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.network.parameters(), lr=0.01)


class CompileAtEnd(L.Callback):
    """Makes ``module.compiled`` of the trained network: a module of its own, beside the one that can be trained on."""

    def __init__(self, precision: str):
        self.precision = precision
        self.compiled: ttb.TRTModule | None = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        x, _ = next(iter(trainer.train_dataloader))
        network = pl_module.network.eval()
        self.compiled = ttb.compile(network, x.to(pl_module.device), self.precision, dynamic_batch=(1, BATCH, BATCH))


def main(precision: str = "fp32") -> tuple[dict[str, float], dict[str, float]]:
    """Loss and accuracy of the trained network, and of the compiled one, also after saving and loading."""
    L.seed_everything(0, verbose=False)
    centers = torch.randn(CLASSES, WIDTH)
    labels = torch.randint(0, CLASSES, (400,))
    data = TensorDataset(centers[labels] + 1.2 * torch.randn(400, WIDTH), labels)
    training = DataLoader(data, batch_size=BATCH, shuffle=True)
    validation = DataLoader(torch.utils.data.Subset(data, range(100)), batch_size=BATCH)
    network = nn.Sequential(nn.Linear(WIDTH, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(), nn.Linear(64, CLASSES))

    trained = Classifier(network)
    compiling = CompileAtEnd(precision)
    trainer = L.Trainer(max_epochs=2, callbacks=[compiling], **QUIET)
    trainer.fit(trained, training)
    eager = trainer.validate(trained, validation, verbose=False)[0]

    deployed = Classifier(compiling.compiled)
    compiled = trainer.validate(deployed, validation, verbose=False)[0]

    with tempfile.TemporaryDirectory() as folder:  # elsewhere: from the checkpoint, without the network's code
        trainer.save_checkpoint(f"{folder}/deployed.ckpt", weights_only=True)
        again = Classifier.load_from_checkpoint(f"{folder}/deployed.ckpt", network=ttb.TRTModule())
    reloaded = L.Trainer(**QUIET).validate(again, validation, verbose=False)[0]

    eager = {**eager, **{f"{name}, reloaded": value for name, value in eager.items()}}
    compiled = {**compiled, **{f"{name}, reloaded": value for name, value in reloaded.items()}}
    for name in eager:
        print(f"{name:<20} eager {eager[name]:.6f}   compiled {compiled[name]:.6f}")
    return eager, compiled


QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "gpu" if torch.cuda.is_available() else "cpu",
    "devices": 1,
}

if __name__ == "__main__":
    main()
