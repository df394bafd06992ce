"""A model small enough to train hundreds of times in a test, with the outside of a packed model."""

from __future__ import annotations

from types import SimpleNamespace

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmrlhf.tensors import Branch, EncodedGroup, PackedBatch, ResponseOutputs, StepBatch
from mmrlhf.tokens.packing import pack_groups

VOCABULARY, WIDTH = 16, 8


class ToyBackbone(nn.Module):
    """Embedding, two residual layers, an output map, and a projector that only groups with images reach."""

    def __init__(self) -> None:
        super().__init__()
        layers = nn.ModuleList([nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(2)])
        self.model = nn.ModuleDict(
            {
                "language_model": nn.ModuleDict({"embed": nn.Embedding(VOCABULARY, WIDTH), "layers": layers}),
                "multi_modal_projector": nn.Linear(3, WIDTH),
            }
        )
        self.lm_head = nn.Linear(WIDTH, VOCABULARY)

    @property
    def base_model(self) -> SimpleNamespace:
        language = self.model["language_model"]
        return SimpleNamespace(language_model=SimpleNamespace(embed=language["embed"], layers=language["layers"]))

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model["language_model"]["embed"]

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head


class ToyModel(nn.Module):
    """Scores a packed row token by token: no attention, so a group's tokens never see its neighbours'."""

    def __init__(self, seed: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.backbone = ToyBackbone()
            self.score_head = nn.Linear(WIDTH, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, batch: PackedBatch) -> ResponseOutputs:
        hidden = self.backbone.base_model.language_model.embed(batch.input_ids)
        for group, media in enumerate(batch.media):
            if media:
                seen = self.backbone.model["multi_modal_projector"](media["pixels"])
                hidden = hidden + seen * (batch.group_of_token == group)[:, None]
        for layer in self.backbone.base_model.language_model.layers:
            hidden = hidden + layer(hidden)
        hidden = self.dropout(hidden)
        logits = self.backbone.lm_head(hidden[batch.predict_at])
        token = logits.log_softmax(1).gather(1, batch.label_ids[:, None])[:, 0]
        zeros = torch.zeros(batch.num_responses)
        return ResponseOutputs(
            logprob=zeros.index_add(0, batch.label_response, token),
            num_tokens=zeros.index_add(0, batch.label_response, torch.ones_like(token)),
            hidden=hidden[batch.last_token],
            token_logprob=token,
        )

    def scores(self, outputs: ResponseOutputs) -> Tensor:
        return self.score_head(outputs.hidden)

    def score(self, outputs: ResponseOutputs) -> Tensor:
        return self.scores(outputs)[:, 0]


def make_group(
    number: int,
    ranks: tuple[float, ...] = (1, 2, 2, 3),
    *,
    image: bool = False,
    weight: float = 1.0,
    labels: bool = True,
) -> EncodedGroup:
    """A group whose tokens, reward and reference follow from its number."""
    generator = torch.Generator().manual_seed(number)
    lengths = torch.randint(2, 6, (len(ranks),), generator=generator).tolist()
    branches = tuple(
        Branch(
            ids=torch.randint(0, VOCABULARY, (length,), generator=generator),
            positions=torch.arange(3, 3 + length)[None],
            labels=torch.full((length,), labels),
            response_hash=f"{number}-{k}",
        )
        for k, length in enumerate(lengths)
    )
    size = len(ranks)
    return EncodedGroup(
        key=f"group{number}",
        prefix_ids=torch.randint(0, VOCABULARY, (3,), generator=generator),
        prefix_positions=torch.arange(3)[None],
        branches=branches,
        media={"pixels": torch.rand(3, generator=generator)} if image else {},
        num_images=int(image),
        num_videos=0,
        pairs=tuple((i, j) for i in range(size) for j in range(size) if ranks[i] < ranks[j]),
        columns={
            "rank": torch.tensor(ranks, dtype=torch.float32),
            "reward": torch.randn(size, generator=generator),
            "reference_logprob": -torch.rand(size, generator=generator) - 2.0 * torch.tensor(lengths),
        },
        weight=weight,
    )


def make_step(step: int, groups: list[EncodedGroup], num_micro: int, rank: int = 0, world: int = 1) -> StepBatch:
    """One rank's share of a step of these groups, cut into `num_micro` micro-batches over all ranks."""
    micro = [pack_groups(groups[start::num_micro]) for start in range(num_micro)]
    return StepBatch(
        epoch=0,
        step=step,
        micro_batches=tuple(micro[rank::world]),
        num_groups=sum(group.weight > 0 for group in groups),
    )


def make_steps(num_steps: int, num_micro: int, rank: int = 0, world: int = 1, **options: bool) -> list[StepBatch]:
    """A run: four groups a step, every second group with an image."""
    return [
        make_step(
            step,
            [make_group(10 * step + i, (1, 2, 3)[: 2 + i % 2], image=i % 2 == 1, **options) for i in range(4)],
            num_micro,
            rank,
            world,
        )
        for step in range(num_steps)
    ]


class ToyData(L.LightningDataModule):
    """Steps to train on and one to validate on, left on the host as the real data module leaves them."""

    def __init__(self, train: list[StepBatch], val: list[StepBatch]) -> None:
        super().__init__()
        self.train, self.val = train, val

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, batch_size=None)  # type: ignore[arg-type]

    def transfer_batch_to_device(self, batch: StepBatch, device: torch.device, dataloader_idx: int) -> StepBatch:
        return batch


def quiet_trainer(**options: object) -> L.Trainer:
    """A CPU trainer that writes and shows nothing."""
    settings: dict = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
    }
    return L.Trainer(**(settings | options))


def fit(trainer: L.Trainer, module: L.LightningModule, steps: list[StepBatch], ckpt_path: object = None) -> None:
    """Train on the steps and validate on the first of them."""
    trainer.fit(module, datamodule=ToyData(steps, steps[:1]), ckpt_path=ckpt_path)  # type: ignore[arg-type]
