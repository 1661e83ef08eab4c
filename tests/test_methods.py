"""Every registered method: pure, finite, exactly resumable, and in two processes what it is in one."""
import copy
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launching import finish
from test_processes import Start, newest

from isd_nb.data import ImageSet
from isd_nb.errors import InputError
from isd_nb.sources.digits import digits
from isd_nb.method import Method, Output, view_kinds
from isd_nb.explore.gallery import key_views_of
from isd_nb.engine import state
from isd_nb.engine.state import prepare_training, save_encoders, train_step, try_method
from isd_nb.engine.training import train
from isd_nb.methods.building import build_method, find_method, methods, with_method
from isd_nb.methods.checkpoints import open_encoder
from isd_nb.methods.choosing import change_setting, choose_recipe
from isd_nb.protocols.storage import write_json
from isd_nb.recipe import Recipe, find_recipe, recipe_to_json
from isd_nb.protocols.monitor import Monitor
from isd_nb.sources.batches import seeded
from isd_nb.studies.compare import recipe_for

TOY = Recipe("toy", steps=6, batch_size=16, queue_size=24, width=4, projector=(10, 6), predictor=(8,), evaluations=6,
             momentum=(0.9, 0.9), precision="float32")
SYMMETRIC = ("byol", "simsiam", "simclr", "swav")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    "As in the processes that are compared; and nets this small are faster so."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return digits()[0].subset(range(64))


@pytest.fixture(scope="module")
def guide(images: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    "An encoder that CompRess can learn from."
    path = tmp_path_factory.mktemp("guide") / "encoder.safetensors"
    save_encoders(path, build_method(replace(TOY, width=6), images), replace(TOY, width=6), images)
    return path


@pytest.fixture(scope="module", params=sorted(methods))
def recipe(request: pytest.FixtureRequest, guide: Path) -> Recipe:
    options = {"guide": str(guide)} if request.param == "compress" else {}
    return replace(TOY, method=request.param, options=options)


@pytest.fixture(scope="module")
def straight(recipe: Recipe, images: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Method:
    "What six steps make that nothing interrupts."
    return train(recipe, images, tmp_path_factory.mktemp("straight") / "run", device="cpu", show=False).method


def inputs(method: Method, recipe: Recipe, images: ImageSet) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    rows = torch.randperm(len(images), generator=seeded(5))[:16]
    views = [make(images.get(rows), seeded(6, i)) for i, make in enumerate(method.views(recipe))]
    extras = {"indices": rows, "labels": images.labels[rows]}
    return views, {name: extras[name] for name in method.needs}


def test_six_steps_are_finite_and_move_the_student(recipe: Recipe, images: ImageSet, straight: Method) -> None:
    before, after = build_method(recipe, images).state_dict(), straight.state_dict()
    assert all(v.isfinite().all() for v in after.values())
    learned = [name for name, p in straight.named_parameters() if p.requires_grad and p.ndim > 1]
    assert learned and all(not torch.equal(before[name], after[name]) for name in learned)
    frozen = [name for name, p in straight.named_parameters() if not p.requires_grad]
    assert all(name.startswith(("teacher.", "guide.")) for name in frozen)


def test_forward_changes_nothing(recipe: Recipe, images: ImageSet) -> None:
    method = prepare_training(recipe, images, device="cpu").method
    views, extras = inputs(method, recipe, images)
    before = copy.deepcopy(method.state_dict())
    first, second = method(*views, **extras), method(*views, **extras)
    torch.testing.assert_close(first.loss, second.loss, rtol=0, atol=0)
    torch.testing.assert_close(method.state_dict(), before, rtol=0, atol=0)
    first.loss.backward()
    for name, p in method.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name
    method.update(first)
    assert any(not torch.equal(v, before[name]) for name, v in method.state_dict().items())
    if recipe.method in SYMMETRIC:
        swapped = method.load_state_dict(before) and method(*views[1::-1], *views[2:], **extras)
        torch.testing.assert_close(swapped.loss, first.loss)


def test_exact_resume(recipe: Recipe, images: ImageSet, straight: Method, tmp_path: Path) -> None:
    "Stopped in the middle, resumed: bit for bit the run that was never stopped."
    class Interrupted(Exception):
        pass

    def interrupt(method: Method) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 5:  # after four of six steps; what interrupts a run saves it
            raise Interrupted
        return {}

    calls: list[int] = []
    with pytest.raises(Interrupted):
        train(recipe, images, tmp_path / "run", interrupt, device="cpu", save_every=0, show=False)
    assert newest(tmp_path / "run")["step"] == 4
    resumed = train(recipe, images, tmp_path / "run", resume=True, device="cpu", show=False)
    torch.testing.assert_close(resumed.method.state_dict(), straight.state_dict(), rtol=0, atol=0)


SCRIPT = '''
import json
import sys
from pathlib import Path
from typing import Any
from isd_nb.sources.digits import digits
from isd_nb.engine import state
from isd_nb.engine.training import train
from isd_nb.recipe import recipe_from_json
images, build = digits()[0].subset(range(64)), state.build_method
state.build_method = lambda *given: build(*given).double()
for path in sorted(Path(sys.argv[1]).glob("*.json")):
    train(recipe_from_json(json.loads(path.read_text())), images, path.with_suffix(""), device="cpu", show=False)
'''


def test_two_processes_do_what_one_does(start: Start, images: ImageSet, guide: Path, tmp_path: Path,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    "SimCLR's negatives, SwAV's codes, the banks and the queues are those of the whole batch, in double precision."
    build, alone = state.build_method, {}
    monkeypatch.setattr(state, "build_method", lambda *given: build(*given).double())
    for name in ("moco_v2", "co2", "byol", "simclr", "swav", "compress", "pirl", "invp"):  # ISD: see test_processes
        options = {"guide": str(guide)} if name == "compress" else {}
        recipe = replace(TOY, method=name, options=options, steps=3, evaluations=1)
        write_json(tmp_path / f"{name}.json", recipe_to_json(recipe))
        halves = replace(recipe, batch_norm_splits=2)  # batch norm in as many parts as there are processes
        alone[name] = train(halves, images, tmp_path / "alone" / name, device="cpu", show=False).method.state_dict()
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    finish(start(script, str(tmp_path), processes=2))
    for name, found in alone.items():
        torch.testing.assert_close(newest(tmp_path / name)["method"], found, rtol=1e-6, atol=1e-8,
                                   msg=lambda m, name=name: f"{name}: {m}")


def test_a_method_of_ones_own(images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "One class in any package, and no edit of ours: it is trained by its path, with options of its own."
    (tmp_path / "louder_methods.py").write_text("""
from isd_nb.methods.simclr import SimCLR

class Louder(SimCLR):
    options = {"weight": 2.0}

    @classmethod
    def from_recipe(cls, student, recipe, images):
        method = super().from_recipe(student, recipe, images)
        method.weight = cls.settings(recipe)["weight"]
        return method

    def forward(self, view_q, view_k):
        output = super().forward(view_q, view_k)
        return output._replace(loss=self.weight * output.loss)
""")
    monkeypatch.syspath_prepend(tmp_path)
    plain = replace(TOY, method="simclr", steps=1)
    own = replace(plain, method="louder_methods:Louder", options={"weight": 4.0}, learning_rate=plain.learning_rate / 4,
                  weight_decay=0.0)
    plain = replace(plain, weight_decay=0.0)
    states = [train(r, images, tmp_path / r.method.replace(":", "-"), device="cpu", show=False).method.state_dict()
              for r in (plain, own)]
    torch.testing.assert_close(*states)
    with pytest.raises(InputError, match="did you mean 'weight'"):
        build_method(replace(own, options={"wieght": 4.0}), images)


class Own(Method):
    "A method of the user's, with one mistake."
    mistake = ""

    @classmethod
    def from_recipe(cls, student: Any, recipe: Recipe, images: ImageSet) -> Any:
        method = cls()
        method.student = student
        return None if cls.mistake == "none" else method

    def forward(self, view_q: torch.Tensor, view_k: torch.Tensor) -> Any:
        losses = self.student(view_q).square().mean(1)
        wrong = {"no number": losses, "no gradient": losses.mean().detach(), "no tensor": 1.0}
        found = wrong.get(self.mistake, losses.mean())
        return found if self.mistake == "no output" else Output(found)

    def encoders(self) -> Any:
        wrong = {"no encoder": {}, "no Encoder": {"student": self.student.backbone}}
        return wrong.get(self.mistake, {"mine": self.student})


@pytest.mark.parametrize(("mistake", "words"), [
    ("none", "from_recipe of the method .* must return the method, not NoneType"),
    ("no number", r"one number, the mean over the batch, not a tensor of shape \(16,\)"),
    ("no gradient", "has no gradient"),
    ("no tensor", "not float"),
    ("no output", "must return an isd_nb.method.Output, not Tensor"),
    ("no encoder", "must return an isd_nb.encoders.Encoder by each name"),
    ("no Encoder", "not .*'student': 'TinyNet'"),
    ("captions", "needs 'captions', and the loop has 'indices' and 'labels' alone"),
    ("changes", "name 'queue_sise'.*did you mean 'queue_size'"),
])
def test_a_mistake_in_a_method_is_named(mistake: str, words: str, images: ImageSet,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Own, "mistake", mistake)
    monkeypatch.setattr(Own, "needs", ("captions",) if mistake == "captions" else ())
    monkeypatch.setattr(Own, "recipe_changes", {"queue_sise": 3} if mistake == "changes" else {})
    with pytest.raises(InputError, match=words):
        state = prepare_training(with_method(TOY, f"{__name__}:Own"), images, "cpu")
        train_step(state, torch.arange(16), images.images[:16])


# by method: the temperatures of its paper that it reads of a recipe, student's and teacher's
PAPERS: dict[str, dict[str, float]] = {
    "moco_v2": {"student_temperature": 0.2}, "co2": {"student_temperature": 0.2},
    "simclr": {"student_temperature": 0.1}, "swav": {"student_temperature": 0.1},
    "ressl": {"student_temperature": 0.1, "teacher_temperature": 0.04},
    "sce": {"student_temperature": 0.1, "teacher_temperature": 0.05}}
HEADLESS = ("isd", "compress", "supervised")  # compare the backbone's features, or have a classifier


@pytest.mark.parametrize("name", sorted(methods))
def test_a_method_takes_no_temperature_from_isd(name: str) -> None:
    base = find_recipe("imagenet_authors")
    recipe = with_method(base, name)
    for field in ("student_temperature", "teacher_temperature"):
        assert getattr(recipe, field) == PAPERS.get(name, {}).get(field, getattr(base, field))
    assert recipe.projector == (() if name in HEADLESS else (512, 128))
    assert with_method(replace(base, projector=(8, 4)), name).projector == (8, 4)
    guesses = name in ("byol", "byol_asym", "simsiam", "msf")
    assert with_method(replace(base, predictor=()), name).predictor == ((512,) if guesses else ())
    assert recipe.batch_norm_splits == (4 if name in ("moco_v2", "co2") else 2)


def test_what_is_set_after_the_method_counts() -> None:
    recipe = choose_recipe("imagenet_authors", None, method="moco_v2")
    assert (recipe.student_temperature, recipe.projector) == (0.2, (512, 128))
    recipe = change_setting(change_setting(recipe, "student_temperature=0.07"), "projector=[]")
    assert (recipe.student_temperature, recipe.projector) == (0.07, ())
    assert choose_recipe("digits", None, method="moco_v2", student_temperature=0.3).student_temperature == 0.3
    tuned = recipe_for("co2", find_recipe("digits"), 1000, {"student_temperature": 0.15})
    assert (tuned.student_temperature, tuned.batch_norm_splits) == (0.15, 4)


MISTAKES = {
    "no from_recipe": ("base = Method", r"from_recipe of the method .* failed: NotImplementedError: Mine must define"),
    "no forward": ("forward = Method.forward", "forward of .* 2 views: NotImplementedError: Mine must"),
    "three views": ("views = classmethod(lambda cls, recipe: [*SimCLR.views(recipe), SimCLR.views(recipe)[0]])",
                    "forward of .* failed, called with 3 views: TypeError"),
    "a view's part": ("views = classmethod(lambda cls, recipe: [lambda images, generator: images] * 2)",
                      "called with images, generator and part: TypeError.*3 were given"),
    "labels that are not taken": ('needs = ("labels")', "called with 2 views and labels: TypeError"),
    "a shape": ("def forward(self, q, k): return torch.ones(2, 3) @ torch.ones(2, 3)",
                r"RuntimeError: .* \(mine.py, line 6\)"),
    "no buffers": ("def forward(self, q, k): return super().forward(q, k)._replace(buffers=None)", "buffers .*None"),
    "a part": ("def forward(self, q, k): return super().forward(q, k)._replace(buffers={'studnet': {}})",
               "name a part 'studnet'.*did you mean 'student'"),
    "no gradient": ("def forward(self, q, k): return Output(super().forward(q, k).loss.detach())", "has no gradient"),
    "a dot": ("def encoders(self): return {'student.ema': self.student}",
              "an encoder 'student.ema'.*letters, digits, - and _"),
    "no attribute": ("def encoders(self): return self.found", "encoders of the method .*AttributeError"),
    "schedule": ("def schedule(self): pass", "schedule of the method .*TypeError"),
    "update": ("def update(self, output): self.nothing.move()", r"update .*AttributeError: .* \(mine.py, line 6\)"),
    "a name": ("undefined_name", r"cannot be imported: NameError: .* \(mine.py, line 6\)"),
    "syntax": ("def", r"cannot be imported: SyntaxError: .*\(mine.py, line 6\)"),
}


def write_mine(folder: Path, line: str) -> None:
    "A method of a module `mine`, with this in its sixth line."
    base = "Method" if line == "base = Method" else "SimCLR"
    (folder / "mine.py").write_text(f"""import torch
from isd_nb.method import Method, Output
from isd_nb.methods.simclr import SimCLR

class Mine({base}):
    {line}
""")


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recipe]:
    monkeypatch.syspath_prepend(tmp_path)
    yield replace(TOY, method="mine:Mine", steps=2)
    sys.modules.pop("mine", None)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_leaves_no_run_behind(mistake: str, mine: Recipe, images: ImageSet, tmp_path: Path) -> None:
    "One sentence, before there is a directory, so that the corrected call can take its place."
    line, words = MISTAKES[mistake]
    write_mine(tmp_path, line)
    with pytest.raises(InputError, match=words) as caught:
        train(mine, images, tmp_path / "run", device="cpu", show=False)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("needs", ["labels", ("labels", "indices")])
def test_needs_may_be_one_text(needs: Any, mine: Recipe, images: ImageSet, tmp_path: Path) -> None:
    write_mine(tmp_path, f"needs = {needs!r}; forward = lambda self, q, k, **more: SimCLR.forward(self, q, k)")
    trained = train(mine, images, tmp_path / "run", device="cpu", show=False)
    assert trained.method.needs == (("labels",) if needs == "labels" else needs)


def test_a_number_in_extra_is_averaged_over_parts(mine: Recipe, images: ImageSet, tmp_path: Path) -> None:
    write_mine(tmp_path, "def forward(self, q, k): return super().forward(q, k)._replace(extra={'mean': q.mean()})\n"
                         "    def update(self, output): super().update(output); self.seen = output.extra['mean']")
    trained = train(replace(mine, accumulate=2), images, tmp_path / "run", device="cpu", show=False)
    assert trained.method.seen.ndim == 0 and 0 < trained.method.seen < 1


@pytest.mark.parametrize("name", ["isd_nb.isd:ISD", "isd_nb.methods.pirl:PIRL"])
@pytest.mark.parametrize("changes", [{}, {"accumulate": 2, "gradient_checkpointing": True}])
def test_what_is_tried_first_changes_nothing(name: str, changes: dict[str, Any], images: ImageSet,
                                             tmp_path: Path) -> None:
    "By its path a method is tried before it trains, by its short name it is not: weights and queue are the same."
    found = []
    for method in (name.rpartition(":")[2].lower(), name):
        recipe = replace(TOY, steps=2, method=method, **changes)
        found.append(train(recipe, images, tmp_path / method, device="cpu", show=False, threads=1).method.state_dict())
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_what_is_tried_leaves_statistics_and_chance(mine: Recipe, images: ImageSet, tmp_path: Path) -> None:
    "Also where a copy still leads to the method itself, and where chance is drawn in three ways."
    write_mine(tmp_path, "def forward(self, q, k):\n"
                         "        random.random(), np.random.rand(), torch.rand(1)\n        return self.twice(q, k)\n"
                         "    @classmethod\n    def from_recipe(cls, *given):\n"
                         "        m = super().from_recipe(*given)\n"
                         "        m.twice = lambda q, k: (m.student(q), SimCLR.forward(m, q, k))[1]\n        return m")
    (tmp_path / "mine.py").write_text("import random\nimport numpy as np\n" + (tmp_path / "mine.py").read_text())
    own = prepare_training(mine, images, "cpu")
    before = copy.deepcopy(own.method.state_dict())
    chance = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    try_method(own)
    torch.testing.assert_close(own.method.state_dict(), before, rtol=0, atol=0)
    assert all(p.grad is None for p in own.method.parameters())
    assert chance == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002


def test_an_encoder_of_another_name_is_asked_for_in_one_sentence(images: ImageSet, tmp_path: Path) -> None:
    recipe = with_method(TOY, f"{__name__}:Own")
    save_encoders(tmp_path / "encoder.safetensors", build_method(recipe, images), recipe, images)
    with pytest.raises(InputError, match="holds no encoder 'student': known: mine"):
        open_encoder(str(tmp_path))


@pytest.mark.parametrize("method", methods)
def test_monitor_and_explorer_draw_views_as_training_does(method: str, images: ImageSet) -> None:
    recipe = with_method(find_recipe("digits"), method)
    drawn = [getattr(views, "recipe", None) for views in find_method(method).views(recipe)][:2]
    kinds = view_kinds(find_method(method), recipe)
    assert all(one in (None, kind) for one, kind in zip(drawn, kinds)) and key_views_of(recipe) == kinds[1]
    assert key_views_of(replace(recipe, method="is_not_here:Method")) == recipe.views
    if method == "ressl":
        assert kinds[1].jitter == 0 < kinds[0].jitter
        made = Monitor(recipe, images, 4).make_views(find_method(method))
        weak = find_method(method).views(recipe)[1](images.get([0, 1]), seeded(0, 1))
        assert made[1].shape == (4, *weak.shape[1:]) and len(made) == 2
