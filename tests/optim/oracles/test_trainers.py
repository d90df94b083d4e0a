"""Our optimizers in other people's loops: transformers' Trainer and accelerate."""

import copy

import pytest
import torch
from torch import nn

from acmsao_cli.optim import SGD, AdamW, Lion, Muon, Prodigy

KINDS = {
    "adamw": lambda p: AdamW(p, lr=1e-2, storage="factored"),
    "lion in bf16": lambda p: Lion(p, lr=1e-3, storage="bf16", seed=3),
    "prodigy": lambda p: Prodigy(p, lr=1.0, d0=1e-3),
    "muon": lambda p: Muon(p, lr=1e-3),
    "sgd": lambda p: SGD(p, lr=1e-2, momentum=0.9),
}
every_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


class Task(torch.utils.data.Dataset):
    """Sixteen rows; the answer is the sign of the first number."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        x = torch.randn(4, generator=torch.Generator().manual_seed(index))
        return {"x": x, "labels": (x[0] > 0).float()}


class Net(nn.Module):
    """Answers as transformers' models do: a loss under its name."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(4, 8, dtype=dtype)
        self.outer = nn.Linear(8, 1, dtype=dtype)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        answer = self.outer(torch.tanh(self.inner(x.to(self.inner.weight.dtype)))).squeeze(1)
        return {"loss": nn.functional.mse_loss(answer.float(), labels), "logits": answer}


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten().float() for p in model.parameters()])


def trained(make, folder, *, steps, resume=False, save_at=100, dtype=torch.float32):
    from transformers import Trainer, TrainingArguments

    model = Net(dtype)
    optimizer = make(model.named_parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
    arguments = TrainingArguments(
        str(folder),
        max_steps=steps,
        save_steps=save_at,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_grad_norm=1.0,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        dataloader_pin_memory=False,
        seed=1,
    )
    trainer = Trainer(model, arguments, train_dataset=Task(), optimizers=(optimizer, schedule))
    trainer.train(resume_from_checkpoint=resume or None)
    return model, optimizer


@pytest.mark.parametrize("make", [KINDS["adamw"], KINDS["prodigy"]], ids=["adamw", "prodigy"])
@pytest.mark.filterwarnings("default")  # theirs
def test_the_trainer_of_transformers_trains_saves_and_resumes(make, tmp_path):
    pytest.importorskip("transformers")
    whole, _ = trained(make, tmp_path / "whole", steps=6)
    trained(make, tmp_path / "halves", steps=3, save_at=3)
    resumed, optimizer = trained(make, tmp_path / "halves", steps=6, resume=True)
    assert torch.equal(weights(whole), weights(resumed))
    assert not torch.equal(weights(whole), weights(Net()))
    assert optimizer.global_step == 6
    rates = {group["initial_lr"] * 0.9**6 for group in optimizer.param_groups}
    assert rates == {group["lr"] for group in optimizer.param_groups}


def accelerated(make, dtype=torch.float32):
    """Model, optimizer, scheduler and data as accelerate prepares them."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = Net(dtype)
    optimizer = make(model.parameters())
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    data = torch.utils.data.DataLoader(Task(), batch_size=4)
    return accelerator, *accelerator.prepare(model, optimizer, schedule, data)


def train(accelerator, model, optimizer, schedule, data, epochs=1):
    for _ in range(epochs):
        for batch in data:
            with accelerator.accumulate(model):
                accelerator.backward(model(**batch)["loss"])
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.filterwarnings("default")
def test_accelerate_prepares_trains_saves_and_resumes(make, dtype, tmp_path):
    pytest.importorskip("accelerate")
    whole, first, second = (accelerated(make, dtype) for _ in range(3))
    train(*whole, epochs=2)
    train(*first)
    first[0].save_state(str(tmp_path), safe_serialization=False)
    second[0].load_state(str(tmp_path))
    train(*second)
    assert torch.equal(weights(whole[1]), weights(second[1]))
    assert second[2].optimizer.global_step == 4
    assert second[2].param_groups[0]["lr"] == whole[2].param_groups[0]["lr"]


@every_kind
def test_accelerate_steps_as_a_plain_loop(make):
    pytest.importorskip("accelerate")
    prepared = accelerated(make)
    plain = Net()
    optimizer = make(plain.parameters())
    for start in (0, 8):
        for half in (start, start + 4):
            rows = [Task()[index] for index in range(half, half + 4)]
            batch = {key: torch.stack([row[key] for row in rows]) for key in ("x", "labels")}
            (plain(**batch)["loss"] / 2).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    train(*prepared)
    assert torch.equal(weights(plain), weights(prepared[1]))


def test_what_accelerate_prepared_can_be_copied():
    pytest.importorskip("accelerate")
    *_, model, optimizer, _, _ = accelerated(KINDS["adamw"])
    other_model, other = copy.deepcopy((model, optimizer.optimizer))
    for parameter in other_model.parameters():
        parameter.grad = torch.ones_like(parameter)
    other.step()
    assert not torch.equal(weights(model), weights(other_model))
