"""The network of the example: a small convolutional classifier in an ordinary `LightningModule`."""

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor, Tensor]


class SmallCNN(pl.LightningModule):
    """Four convolutions, global average pooling, one linear layer.

    It takes batches `(images, labels, masks)` and never looks at the masks.

    Args:
        num_classes: The number of logits.
        learning_rate: The learning rate of Adam at the first step; it falls to zero along a cosine.
    """

    def __init__(self, num_classes: int = 2, learning_rate: float = 2e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.learning_rate = learning_rate
        self.features = nn.Sequential(  # (N, 3, 64, 64) -> (N, 64, 16, 16)
            _block(3, 16),
            nn.MaxPool2d(2),
            _block(16, 32),
            nn.MaxPool2d(2),
            _block(32, 64),
            _block(64, 64),
        )
        self.head = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a batch of images, (N, 3, H, W) -> (N, num_classes)."""
        logits: Tensor = self.head(self.features(images).mean(dim=(2, 3)))
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a training batch."""
        return self._step(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss and accuracy of a validation batch."""
        self._step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss and accuracy of a test batch."""
        self._step(batch, "test")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return Adam over all parameters; its learning rate falls to zero by the last step."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.learning_rate)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _step(self, batch: Batch, split: str) -> Tensor:
        images, labels, _ = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels)
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        self.log_dict(
            {f"{split}_loss": loss, f"{split}_acc": accuracy},
            on_step=False,
            on_epoch=True,
            prog_bar=True,
            batch_size=len(images),
        )
        return loss


def _block(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )
