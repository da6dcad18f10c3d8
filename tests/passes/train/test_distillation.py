"""Self-distillation: the error falls, masks hold, and only what should be is trained."""

import copy

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from sparsec.passes import PassError  # noqa: E402
from sparsec.passes.train import MaskDecay, Regrow, StructureDecay, distil, sparse_weights, sparsify  # noqa: E402
from sparsec.passes.train.distillation import relative_error  # noqa: E402
from sparsec.passes.train.outputs import answers, observed  # noqa: E402


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(50, 32)
        self.body = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.LayerNorm(64), nn.Linear(64, 32))
        self.head = nn.Linear(32, 5)

    def forward(self, ids):
        states = self.body(self.embedding(ids))
        return {"states": states, "ids": ids, "logits": (self.head(states),)}


def pair(pattern="2:4x16"):
    teacher = Net().eval()
    student = copy.deepcopy(teacher)
    sparsify(student, pattern)
    return student, teacher


def batches(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randint(0, 50, (8, 5), generator=generator),) for _ in range(10)]


def error(student, teacher):
    (batch,) = batches(2)[0]
    return relative_error(student(batch)["states"], teacher(batch)["states"]).item()


@pytest.mark.parametrize(
    "schedule", [None, Regrow(), MaskDecay(), StructureDecay()], ids=lambda s: type(s).__name__
)
@pytest.mark.parametrize("features", ["", "body.0|body.2"])
def test_the_error_falls_and_the_mask_holds(schedule, features):
    student, teacher = pair()
    before = error(student, teacher)
    losses = distil(student, teacher, batches(), steps=120, rate=3e-3, schedule=schedule, features=features)
    assert len(losses) == 120
    assert error(student, teacher) < 0.6 * before
    for _, layer, _, masked in sparse_weights(student):
        assert torch.equal(layer.weight != 0, masked.mask) and masked.mask.float().mean() == 0.5


def test_what_is_trained():
    student, teacher = pair()
    before = copy.deepcopy(student.state_dict())
    distil(student, teacher, batches(), steps=3, rate=1e-2)
    changed = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    originals = {f"body.{i}.parametrizations.weight.original" for i in (0, 3)}
    assert changed == originals | {"body.0.bias", "body.3.bias", "body.2.weight", "body.2.bias", "head.bias"}


def test_seconds_bound_it_too():
    student, teacher = pair()
    said = []
    losses = distil(student, teacher, batches(), seconds=1.0, log=said.append)
    assert len(losses) >= 1
    assert len(said) == len(losses) // 50


def test_the_log_may_score_the_student():
    student, teacher = pair()
    scores = []
    distil(
        student,
        teacher,
        batches(),
        steps=101,
        features="body.0",
        log=lambda _: scores.append(error(student, teacher)),
    )
    assert len(scores) == 2


def test_bfloat16_trains_float32_weights():
    student, teacher = pair()
    before = error(student, teacher)
    distil(student, teacher, batches(), steps=60, rate=3e-3, autocast=torch.bfloat16)
    assert student.body[0].weight.dtype == torch.float32 and error(student, teacher) < 0.7 * before


def test_the_teacher_is_asked_once_where_its_answers_are_kept():
    student, teacher = pair()
    before, asked = error(student, teacher), []
    teacher.register_forward_hook(lambda *_: asked.append(1))
    distil(student, teacher, iter(batches()), steps=60, rate=3e-3, features="body.0", remember=True)
    assert len(asked) == len(batches())
    assert error(student, teacher) < 0.7 * before


def test_kept_answers_come_with_their_batch():
    _, teacher = pair()
    with observed(teacher, "body.2|body", None) as dense:
        stream = answers(dense, batches(), torch.float32)
        seen = [next(stream) for _ in range(3 * len(batches()))]
        for batch, kept in seen:
            assert all(torch.equal(k, w) for k, w in zip(kept, dense(batch), strict=True))
            assert len({id(tensor) for tensor in kept}) == 3  # the body's output is `states`
    orders = [[id(batch[0]) for batch, _ in seen[i : i + 10]] for i in (0, 10, 20)]
    assert len({tuple(order) for order in orders}) == 3
    assert len({frozenset(order) for order in orders}) == 1


def test_what_it_asks_for():
    student, teacher = pair()
    with pytest.raises(PassError, match="either steps or seconds"):
        distil(student, teacher, batches())
    for none in ({"steps": 0}, {"seconds": -1.0}):
        with pytest.raises(PassError, match="needs time to train, found"):
            distil(student, teacher, batches(), **none)
    with pytest.raises(PassError, match="call sparsify first"):
        distil(teacher, teacher, batches(), steps=1)
    with pytest.raises(PassError, match="features=tail names no module"):
        distil(student, teacher, batches(), steps=1, features="tail")
    with pytest.raises(PassError, match="at least one batch"):
        distil(student, teacher, iter([]), steps=1)


def test_relative_error():
    assert relative_error(torch.zeros(3), torch.ones(3)).item() == 1
    assert relative_error(torch.full((3,), 1.5), torch.ones(3)).item() == 0.25
