"""Trains the bundled judge from nothing: attributes first, then questions. Seeded.

1. The tower learns the attributes of pictures through linear heads on its visual tokens; the heads are thrown away.
2. The whole model answers questions, a picture's packed into one sequence: simple ones ("Is the object red?") beside
   the checklist's, about a prompt of which each attribute is right or wrong by chance.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from quickstart.judge import QuestionBank, new_model, new_processor, packed_logits, save, visual_tokens
from quickstart.questions import TURNS_ON, simple_questions, truths
from quickstart.world import ATTRIBUTES, COLUMN, NAMES, PROMPTED, all_scenes, prompt_of, render
from rewards.checklist import PROMPT, Checklist

CHECKLIST = Path(__file__).parents[1] / "configs" / "checklists" / "quickstart.yaml"
ABSENT = 0.08  # share of training pictures without an object
DEFECT = (0.5, 0.25, 0.25)  # of blur and of specks, by level
BATCH = 64
QUESTIONS = 5  # asked about a picture in one step
SIMPLE = 2  # of them, about one attribute alone
PEAK = 2e-3  # learning rate


def random_scenes(count: int, rng: np.random.Generator) -> np.ndarray:
    """Return scenes [B, 8] with every attribute evenly likely, and defects and absence at their rates."""
    scenes = np.stack([rng.integers(0, len(values), count) for values in ATTRIBUTES.values()], axis=1)
    for defect in ("blur", "specks"):
        scenes[:, COLUMN[defect]] = rng.choice(3, count, p=DEFECT)
    scenes[:, COLUMN["present"]] = rng.random(count) >= ABSENT
    return scenes


def random_asked(scenes: np.ndarray, question: str, rng: np.random.Generator) -> np.ndarray:
    """Return scenes [B, 8] to prompt with, such that yes and no to `question` are evenly likely."""
    keep = {"subject_exactly": 0.5**0.5, "subject_at_all": 1 - 0.5**0.5}.get(question, 0.5)
    turns_on = TURNS_ON.get(question, ())
    asked = scenes.copy()
    for name in PROMPTED:
        column, count = asked[:, COLUMN[name]], len(ATTRIBUTES[name])
        wrong = rng.random(len(scenes)) >= (keep if name in turns_on else 0.5)
        column[wrong] = (column[wrong] + rng.integers(1, count, wrong.sum())) % count
    return asked


def prompt_index(asked: np.ndarray) -> np.ndarray:
    """Return where scenes [B, 8] lie in `all_scenes()`."""
    columns = [asked[:, COLUMN[name]] for name in PROMPTED]
    return np.ravel_multi_index(columns, [len(ATTRIBUTES[name]) for name in PROMPTED])


def to_pixels(pictures: np.ndarray) -> Tensor:
    """Return pixels [B, 3, 64, 64] in [-1, 1] of uint8 pictures [B, 64, 64, 3], as the processor gives them."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


@dataclass
class Examples:
    """Questions for a batch: rows of the bank [B, K], answer tokens [B, K], weights [B, K]."""

    rows: Tensor
    answers: Tensor
    weights: Tensor


class Course:
    """All questions that the judge is taught, and batches of them."""

    def __init__(self, checklist: Checklist):
        self.checklist, self.simple = checklist, simple_questions()
        prompts = [prompt_of(scene) for scene in all_scenes()]
        texts = [text for text, _, _ in self.simple]
        self.start = {}
        for question in checklist.questions:
            self.start[question.id] = len(texts)
            named = prompts if PROMPT in question.text else prompts[:1]
            texts += [question.text.replace(PROMPT, prompt) for prompt in named]
        words = [word for name in NAMES for word in ATTRIBUTES[name]]
        self.processor = new_processor([*texts, *prompts, *words])
        self.bank = QuestionBank.of(self.processor, texts)
        token = self.processor.tokenizer.convert_tokens_to_ids
        self.words = {name: np.array(token(list(values))) for name, values in ATTRIBUTES.items()}
        self.no, self.yes = token(["no", "yes"])
        self.balance = self._balance(random_scenes(20_000, np.random.default_rng(0)))

    def _balance(self, scenes: np.ndarray) -> dict[str, tuple[float, float]]:
        """Return, by question, the weights of a no and of a yes that make both count alike."""
        rng, weights = np.random.default_rng(0), {}
        for name in self.start:
            share = truths(scenes, random_asked(scenes, name, rng))[name].mean()
            weights[name] = (0.5 / (1 - share), 0.5 / share)
        return weights

    def row(self, question: str, asked: np.ndarray) -> np.ndarray:
        """Return the bank's rows [B] of a question of the checklist about prompts [B, 8]."""
        return self.start[question] + prompt_index(asked) * (question in TURNS_ON)

    def examples(self, scenes: np.ndarray, simple: int, rng: np.random.Generator) -> Examples:
        """Return `simple` simple questions and the rest of the checklist's about each of scenes [B, 8]."""
        shape = (len(scenes), QUESTIONS)
        rows, answers, weights = np.zeros(shape, int), np.zeros(shape, int), np.ones(shape)
        present = scenes[:, COLUMN["present"]] == 1
        choice = rng.integers(0, len(self.simple), (len(scenes), simple))
        for index, (_, name, value) in enumerate(self.simple):
            at = np.nonzero(choice == index)
            shown = scenes[at[0], COLUMN[name]]
            rows[at] = index
            answers[at] = (
                self.words[name][shown] if value is None else np.where(shown == value, self.yes, self.no)
            )
            if value is not None:
                weights[at] = np.where(shown == value, len(ATTRIBUTES[name]) / 2, 1.0)
            if name not in ("background", "specks"):
                weights[at] *= present[at[0]]
        names = list(self.start)
        choice = rng.integers(0, len(names), (len(scenes), QUESTIONS - simple))
        for index, name in enumerate(names):
            item, slot = np.nonzero(choice == index)
            asked = random_asked(scenes[item], name, rng)
            truth = truths(scenes[item], asked)[name]
            rows[item, simple + slot] = self.row(name, asked)
            answers[item, simple + slot] = np.where(truth, self.yes, self.no)
            weights[item, simple + slot] = np.where(truth, *self.balance[name][::-1])
        return Examples(torch.from_numpy(rows), torch.from_numpy(answers), torch.from_numpy(weights).float())


class AttributeHeads(nn.Module):
    """Linear heads that read every attribute off the visual tokens; used in training only."""

    def __init__(self, width: int):
        super().__init__()
        self.heads = nn.ModuleDict(
            {name: nn.Linear(width, len(values)) for name, values in ATTRIBUTES.items()}
        )

    def loss(self, visual: Tensor, scenes: Tensor) -> Tensor:
        """Return the summed cross-entropy over attributes of visual tokens [B, 4, D] against scenes [B, 8]."""
        present = scenes[:, COLUMN["present"]] == 1
        losses = []
        for name, head in self.heads.items():
            rows = slice(None) if name in ("background", "specks", "present") else present
            losses.append(cross_entropy(head(visual.flatten(1))[rows], scenes[rows, COLUMN[name]]))
        return torch.stack(losses).sum()


def learning_rate(step: int, steps: int) -> float:
    """Return a linear warm-up over 100 steps, then a cosine down to 0."""
    return PEAK * min(1.0, (step + 1) / 100) * 0.5 * (1 + np.cos(np.pi * step / steps))


def optimise(
    modules: list[nn.Module], steps: int, loss_of: Callable[[int], Tensor], say: Callable[[str], None]
) -> None:
    """Take `steps` AdamW steps on `loss_of(step)`."""
    for module in modules:
        module.train()
    weights = [weight for module in modules for weight in module.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=PEAK, weight_decay=0.02)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if (step + 1) % 200 == 0:
            say(f"step {step + 1} of {steps}: loss {loss.item():.3f}")


@torch.no_grad()
def agreement(model, course: Course, pictures: np.ndarray, scenes: np.ndarray, seed: int) -> dict[str, float]:
    """Return, by question, how often the judge is right about pictures that show `scenes`.

    Prompts are drawn for each question, and yes and no count alike (the mean of the two shares of right answers).
    """
    model.eval()
    rng = np.random.default_rng(seed)
    rows, truth = [], []
    for name in course.start:
        asked = random_asked(scenes, name, rng)
        rows.append(course.row(name, asked))
        truth.append(truths(scenes, asked)[name])
    rows, truth = torch.from_numpy(np.stack(rows, axis=1)), np.stack(truth, axis=1)
    said = []
    for index in torch.arange(len(pictures)).split(128):
        visual = visual_tokens(model, to_pixels(pictures[index.numpy()]))
        logits = packed_logits(model, visual, course.bank.ids[rows[index]], course.bank.last[rows[index]])
        said.append(logits[..., course.yes] > logits[..., course.no])
    right = torch.cat(said).numpy() == truth
    return {
        name: float(np.mean([right[truth[:, k] == answer, k].mean() for answer in (True, False)]))
        for k, name in enumerate(course.start)
    }


def print_agreement(title: str, shares: dict[str, float], say: Callable[[str], None]) -> None:
    say(f"{title}: mean {np.mean(list(shares.values())):.3f}, least {min(shares.values()):.3f}")
    say("  " + "  ".join(f"{name} {share:.3f}" for name, share in shares.items()))


def main(
    out: str | Path, seed: int = 0, threads: int = 2, tower_steps: int = 2000, steps: int = 5000
) -> None:
    """Train the judge and write its folder to `out`."""
    began = time.perf_counter()

    def say(line: str) -> None:
        print(f"[{time.perf_counter() - began:5.0f} s] {line}", flush=True)

    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    course = Course(Checklist.from_yaml(CHECKLIST))
    model = new_model(course.processor)
    heads = AttributeHeads(4 * model.config.text_config.hidden_size)
    say(f"{sum(weight.numel() for weight in model.parameters()):,} parameters")

    def batch() -> tuple[Tensor, np.ndarray]:
        scenes = random_scenes(BATCH, rng)
        return to_pixels(render(scenes, rng)), scenes

    def attribute_loss(step: int) -> Tensor:
        pixels, scenes = batch()
        return heads.loss(visual_tokens(model, pixels), torch.from_numpy(scenes))

    def question_loss(step: int) -> Tensor:
        pixels, scenes = batch()
        visual = visual_tokens(model, pixels)
        examples = course.examples(scenes, SIMPLE if step < 0.7 * steps else 0, rng)
        logits = packed_logits(model, visual, course.bank.ids[examples.rows], course.bank.last[examples.rows])
        answers = cross_entropy(logits.flatten(0, 1), examples.answers.flatten(), reduction="none")
        return (answers * examples.weights.flatten()).mean() + 0.1 * heads.loss(
            visual, torch.from_numpy(scenes)
        )

    held_out = np.random.default_rng(seed + 1)
    scenes = random_scenes(2000, held_out)
    pictures = render(scenes, held_out)
    tower = [model.model.vision_tower, model.model.multi_modal_projector, heads]
    optimise(tower, tower_steps, attribute_loss, say)
    optimise([model, heads], steps, question_loss, say)
    print_agreement("held-out renders", agreement(model, course, pictures, scenes, seed), say)
    save(model, course.processor, out)
