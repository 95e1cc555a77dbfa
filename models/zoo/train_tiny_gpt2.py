"""Train tiny-gpt2 from nothing on the text of `corpus.py`.

    python -m compressor.models.zoo.train_tiny_gpt2 --output FOLDER

writes a folder in the Hugging Face layout, with `data/train.txt` and `data/test.txt`, and prints held-out perplexity
beside that of n-gram models on the same tokens. One thread, fixed seed, under an hour.
"""

import argparse
import hashlib
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.models.zoo.corpus import Document, documents, split, versions
from compressor.models.zoo.ngram import KneserNey

VOCABULARY, CONTEXT, BATCH = 2048, 256, 4
SAMPLE_BYTES = 250_000
END = "<|endoftext|>"


def train_tokenizer(docs: list[Document]) -> Any:
    """A byte-level BPE tokenizer, trained on the training documents."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((doc.text for doc in docs), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, bos_token=END, model_max_length=CONTEXT)


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Saved under the class name that every version of transformers knows."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def encode(tokenizer: Any, docs: list[Document]) -> Tensor:
    """All documents as one row of token ids, an end token after each."""
    rows = tokenizer([doc.text for doc in docs], verbose=False)["input_ids"]
    return torch.tensor([token for row in rows for token in (*row, tokenizer.eos_token_id)])


def make_model() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=128, n_layer=4, n_head=4, n_inner=384,
            activation_function="gelu_pytorch_tanh",  # GPT-2's, in one operation
            initializer_range=0.06,  # GPT-2's 0.02 is for widths near 768, and starts this one slowly
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over a twentieth of the steps, then a cosine down to a twentieth of the peak."""
    warm = max(1, steps // 20)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm))))


def train(model: Any, ids: Tensor, steps: int, peak: float) -> None:
    """AdamW on windows drawn at random from one row of tokens ids (n,)."""
    optimizer = _optimizer(model, peak)
    generator = torch.Generator().manual_seed(0)
    start, mean = time.time(), 0.0
    for step in range(steps):
        rows = _windows(ids, generator)  # (B, CONTEXT + 1)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, peak)
        logits = model(rows[:, :-1]).logits
        loss = F.cross_entropy(logits.reshape(-1, VOCABULARY), rows[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        mean = loss.item() if step == 0 else 0.98 * mean + 0.02 * loss.item()
        if step % 100 == 99:
            print(f"step {step + 1}/{steps}  loss {mean:.3f}  {time.time() - start:.0f} s", flush=True)


def _optimizer(model: Any, peak: float) -> torch.optim.Optimizer:
    """Weight decay on matrices, none on biases and norms."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98))


def _windows(ids: Tensor, generator: torch.Generator) -> Tensor:
    offsets = torch.randint(len(ids) - CONTEXT, (BATCH,), generator=generator)
    return torch.stack([ids[offset : offset + CONTEXT + 1] for offset in offsets])


def loss_on(model: Any, windows: Tensor) -> float:
    """Mean negative log-likelihood in nats of each window's tokens after the first."""
    total = 0.0
    with torch.no_grad():
        for rows in windows.split(16):
            logits = model(rows).logits[:, :-1]
            total += F.cross_entropy(logits.reshape(-1, VOCABULARY), rows[:, 1:].reshape(-1), reduction="sum").item()
    return total / windows[:, 1:].numel()


def text_of(docs: list[Document], n_bytes: int) -> str:
    """Documents drawn at random, the same every time, up to n bytes or all there are; in the order given."""
    chosen: set[str] = set()
    for doc in sorted(docs, key=lambda doc: hashlib.sha256(doc.text.encode()).digest()):
        n_bytes -= len(doc.text.encode()) + 2
        if n_bytes < 0:
            break
        chosen.add(doc.key)
    return "\n\n".join(doc.text for doc in docs if doc.key in chosen) + "\n"


def report(model: Any, tokenizer: Any, training: Tensor, text: str) -> None:
    """Print perplexity per token and bits per byte of the model and of n-grams, on the held-out text."""
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    windows = ids[: len(ids) // CONTEXT * CONTEXT].reshape(-1, CONTEXT)
    per_byte = len(ids) / len(text.encode()) / math.log(2)
    print(f"{windows.shape[0]} windows of {CONTEXT} tokens, {len(text.encode()) / len(ids):.2f} bytes per token")

    def line(name: str, loss: float) -> None:
        print(f"{name}: perplexity {math.exp(loss):.2f} per token, {loss * per_byte:.3f} bits per byte", flush=True)

    line("tiny-gpt2", loss_on(model, windows))
    for order in (1, 2, 3, 4, 5):
        line(f"{order}-gram", KneserNey(training.numpy(), order, VOCABULARY).loss(windows.numpy()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=24_000)
    parser.add_argument("--peak", type=float, default=3e-3, help="highest learning rate")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    training, held_out = split(documents())
    tokenizer = train_tokenizer(training)
    ids = encode(tokenizer, training)
    print(f"{versions()}\n{len(training)} documents, {len(ids)} tokens; {len(held_out)} held out", flush=True)

    data = options.output / "data"
    data.mkdir(parents=True, exist_ok=True)
    (data / "train.txt").write_text(text_of(training, SAMPLE_BYTES), encoding="utf-8")
    (data / "test.txt").write_text(text_of(held_out, SAMPLE_BYTES), encoding="utf-8")
    save_tokenizer(tokenizer, options.output)

    model = make_model()
    train(model, ids, options.steps, options.peak)
    model.eval().save_pretrained(options.output)
    report(model, tokenizer, ids, (data / "test.txt").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
