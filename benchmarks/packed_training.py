"""Time of a training step on a picture's questions: one packed sequence against one sequence a question.

    PYTHONPATH=. python benchmarks/packed_training.py [--questions 20] [--device cpu]

A LLaVA with random weights, its picture 576 tokens. Prints the seconds of a forward and backward pass of both
ways, their ratio, and how far their gradients differ.
"""

import argparse
from time import perf_counter

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from rewards.packed_batch import IGNORED, Shared, pack_answers, stack

IMAGE, WORDS = 999, 12  # placeholder of a picture's tokens; words a question


def model(device: str) -> LlavaForConditionalGeneration:
    """A small one: the picture costs as many tokens as in LLaVA 1.5."""
    torch.manual_seed(0)
    size = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4}
    vision = CLIPVisionConfig(**size, image_size=336, patch_size=14, projection_dim=256)
    text = LlamaConfig(**size, vocab_size=1000, num_key_value_heads=4)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
    return LlavaForConditionalGeneration(config).to(device).train()


def step(model, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of the mean log loss of the answers."""
    model.zero_grad()
    labels = batch["labels"][:, 1:].flatten()
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs, use_cache=False).logits[:, :-1].flatten(0, 1)
    torch.nn.functional.cross_entropy(logits.float(), labels, ignore_index=IGNORED).backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def timed(model, batch: dict[str, Tensor], repeats: int) -> tuple[float, dict[str, Tensor]]:
    gradients = step(model, batch)
    start = perf_counter()
    for _ in range(repeats):
        step(model, batch)
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return (perf_counter() - start) / repeats, gradients


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    llava = model(args.device)
    pixels = torch.rand(1, 3, 336, 336)
    prefix = {"input_ids": torch.tensor([[1] + [IMAGE] * 576]), "pixel_values": pixels}
    asked = torch.randint(2, 900, (args.questions, WORDS)).tolist()
    answers = torch.randint(2, 4, (args.questions,)).tolist()
    length = 577
    shared = Shared(prefix, torch.arange(length)[None], length, asked)
    alone = [Shared(prefix, shared.positions, length, [question]) for question in asked]
    packed = stack([pack_answers(shared, answers)], 0, torch.float32)
    separate = stack(
        [pack_answers(one, [answer]) for one, answer in zip(alone, answers, strict=True)], 0, torch.float32
    )
    results = []
    for name, batch in (("packed", packed), ("separate", separate)):
        batch = {key: value.to(args.device) for key, value in batch.items()}
        seconds, gradients = timed(llava, batch, args.repeats)
        results.append((seconds, gradients))
        print(f"{name:9} {seconds:.3f} s, {len(batch['pixel_values'])} pictures encoded")
    print(f"ratio: {results[1][0] / results[0][0]:.1f}, {args.questions} questions a picture")
    scale = max(gradient.abs().max() for gradient in results[1][1].values())
    gap = max((ours - results[1][1][name]).abs().max() for name, ours in results[0][1].items())
    print(f"largest difference of a gradient: {(gap / scale).item():.1e} of the largest gradient")


if __name__ == "__main__":
    main()
