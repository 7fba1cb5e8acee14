"""What becomes of each row: experts, then the set, then its trainings, and beside them those of real images."""

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from apps.compare.results import RANDOM
from atom.coreset import METHODS
from atom.distilled import DistilledSet
from atom.methods.experts import Expert
from atom.methods.lookup import find_method
from atom.methods.method import Unit
from atom.methods.soundness import joined
from pipelines.baselines import coresets
from pipelines.comparison.case import Candidate, Comparison
from pipelines.comparison.images import Images, RealImages
from pipelines.comparison.judging import Judging
from pipelines.comparison.labels import LabelFiles, Teaching, teachers_of
from pipelines.comparison.tables import ExpertTimes, Finished, Judged, labelled
from pipelines.distill import assemble, note_spent, publish
from pipelines.distill_case import problem_of
from pipelines.distillation import Distilling
from pipelines.evaluation import SmallSet, Trials, judged_sets
from pipelines.output.checkpoints import Checkpoints
from pipelines.output.expert_files import ExpertFiles
from pipelines.preparing import Preparation, Preparing
from pipelines.tracking import Tracker
from pipelines.workers.faults import Failure, reason_of
from pipelines.workers.works import Spent, Task


class Making(Distilling):
    """A distillation that has its set judged once it is whole."""

    def __init__(self, candidate: Candidate, comparing: "Comparing", *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, title=candidate.title, **options)
        self.candidate, self._comparing = candidate, comparing

    def then(self, item: Unit) -> Sequence[Task]:
        """After the last unit, the trainings of the set."""
        del item
        return () if self.left() else self._comparing.judge(self)


@dataclass
class Comparing:
    """A comparison at work.

    Attributes:
        makings: by name of the candidate.
        judgings: of each candidate whose set is whole, and of the real images by their number a class.
        sets: that are whole.
        reals: real images of each number a class.
        preparing: what makes experts and other preparations.
        taught_by, whose: label random images; see `teachers_of`.
        teachings: of random images, by their number a class.
        labelled: random images with labels.
        busy_s: seconds of this driver's workers together while they had work.
    """

    comparison: Comparison
    trackers: Mapping[str, Tracker]
    makings: dict[str, Making] = field(default_factory=dict)
    judgings: dict[str | int, Judging] = field(default_factory=dict)
    sets: dict[str, DistilledSet] = field(default_factory=dict)
    reals: dict[int, list[SmallSet]] = field(default_factory=dict)
    preparing: list[Preparing] = field(default_factory=list)
    taught_by: Sequence[Expert] = ()
    whose: str = ""
    teachings: dict[int, Teaching] = field(default_factory=dict)
    labelled: dict[int, SmallSet] = field(default_factory=dict)
    busy_s: float = 0.0
    _trainers: dict[str, Preparing] = field(default_factory=dict)

    @cached_property
    def images(self) -> RealImages:
        """As workers take them."""
        return RealImages(self.comparison)

    @cached_property
    def times(self) -> ExpertTimes:
        """Of experts."""
        return ExpertTimes(self.comparison.store)

    def _busy(self, spent: Spent, also: Callable[[Spent], None] | None = None) -> None:
        self.busy_s += spent.worker_s
        if also is not None:
            also(spent)

    def tasks(self) -> list[Task]:
        """What can be begun at first, real images last."""
        comparison, images = self.comparison, self.images.common
        for ipc in comparison.command.ipc:
            self.reals[ipc] = coresets(
                METHODS,
                images.train,
                comparison.real.train.labels,
                ipc=ipc,
                num_classes=comparison.real.train.num_classes,
                seed=comparison.command.distill.seed,
                seeds=comparison.seeds,
            )
        for candidate in comparison.candidates:
            self.makings[candidate.name] = self._making(candidate)
        self.taught_by, self.whose = teachers_of(
            comparison.command, comparison.asked, symbols=comparison.real.symbols
        )
        self._prepare()
        tasks = [task for work in self.preparing for task in work.tasks(work.ready())]
        for making in self.makings.values():
            tasks += making.tasks(making.ready()) if making.left() else self.judge(making)
        for ipc in comparison.command.ipc:
            tasks += self._judge_real(ipc)
        return tasks

    def _making(self, candidate: Candidate) -> Making:
        case = candidate.case
        return Making(
            candidate,
            self,
            problem_of(case),
            case.units,
            self.images.of(candidate).classes,
            Checkpoints(case.store, case.digest),
            checkpoint_every=case.command.checkpoint_every,
            tracker=self.trackers[candidate.name],
            on_spent=partial(self._busy, also=partial(note_spent, case)),
        )

    def _prepare(self) -> None:
        """Experts once for all that ask for them, and what else a method asks for."""
        for images in self.images.all():
            makings = [one for one in self.makings.values() if self.images.of(one.candidate) is images]
            experts = [item for one in makings for item in one.needed if isinstance(item, Expert)]
            experts += self._to_train() if images is self.images.common else ()
            if experts:
                work = self._wait(makings, experts, images, images.experts, partial(self._trained, images))
                self._trainers[images.preprocess.digest] = work
                for one in work.ready():
                    assert isinstance(one, Expert), "asked for above"
                    self.times.begin(self._file_of(images, one), work.epochs(one))
            for one in makings:
                names = [item for item in one.needed if not isinstance(item, Expert)]
                if names:
                    self._wait([one], names, images, None, partial(note_spent, one.candidate.case))

    def _trained(self, images: Images, spent: Spent) -> None:
        epochs = self._trainers[images.preprocess.digest].epochs(spent.item)
        self.times.add(self._file_of(images, spent.item), spent, epochs=epochs)

    def _file_of(self, images: Images, expert: Expert) -> str:
        return images.experts.name(expert, tuple(sorted(images.classes)))

    def _wait(
        self,
        makings: Sequence[Making],
        items: Sequence[Preparation],
        images: Images,
        files: ExpertFiles | None,
        on_spent: Callable[[Spent], None],
    ) -> Preparing:
        # Of whose problem is all the same to experts, and other preparations are of one.
        some = next(iter(makings or self.makings.values()))
        work = Preparing(
            some.problem,
            items,
            images.classes,
            some.checkpoints,
            files,
            on_spent=partial(self._busy, also=on_spent),
            title=some.candidate.title if files is None else "experts",
        )
        self.preparing.append(work)
        for one in makings:
            one.wait_for(work)
        return work

    def judge(self, making: Making) -> Sequence[Task]:
        """Put a set together that is whole, and have it judged."""
        candidate, case = making.candidate, making.candidate.case
        images = self.images.of(candidate)
        outcome = making.conclude()
        if outcome.failed:
            return ()
        try:
            part = joined(outcome.parts(case.settings))
            distilled = assemble(case, part, outcome.programs, images.preprocess)
            distilled.validate()
        except Exception as error:
            # What a method makes of its last state may be a user's own code, whose faults are its own row's.
            details = "".join(traceback.format_exception(error))
            outcome.failed[tuple(range(case.real.train.num_classes))] = Failure(
                reason_of(error).reason, details
            )
            return ()
        publish(case, distilled)
        self.sets[candidate.name] = distilled
        sets = judged_sets(distilled, candidate.label, smoke=self.comparison.command.smoke)
        work = Judging(self._trials(sets, images, case.store), candidate.title, self._busy)
        self.judgings[candidate.name] = work
        return work.tasks(work.ready())

    def _judge_real(self, ipc: int) -> Sequence[Task]:
        comparison, images = self.comparison, self.images.common
        trials = self._trials(self.reals[ipc], images, comparison.store)
        work = Judging(trials, f"real images, ipc {ipc}", self._busy)
        self.judgings[ipc] = work
        return [*self._teach(ipc, images), *work.tasks(work.ready())]

    def _teach(self, ipc: int, images: Images) -> Sequence[Task]:
        if not self.taught_by:
            return ()
        self.teachings[ipc] = Teaching(
            self._random(ipc),
            self.taught_by,
            next(iter(self.makings.values())).problem,
            self._trainers.get(images.preprocess.digest),
            partial(self._judge_labelled, ipc, images),
            self._busy,
            self._label_files(),
            title=f"labels of random images, ipc {ipc}",
        )
        return self.teachings[ipc].begin()

    def _random(self, ipc: int) -> SmallSet:
        return next(one for one in self.reals[ipc] if one.name == RANDOM)

    def _label_files(self) -> LabelFiles:
        return LabelFiles(self.comparison.store, self._files_of(self.taught_by), self.taught_by)

    def _to_train(self) -> Sequence[Expert]:
        """The teachers, unless all that they are to say is on disk: experts may be deleted when a run is done."""
        files = self._label_files()
        if all(not files.missing(self._random(ipc)) for ipc in self.reals):
            return ()
        return self.taught_by

    def _judge_labelled(self, ipc: int, images: Images, small: SmallSet) -> Sequence[Task]:
        self.labelled[ipc] = small
        trials = self._trials([small], images, self.comparison.store)
        work = Judging(trials, f"{small.name}, ipc {ipc}", self._busy)
        self.judgings[labelled(ipc)] = work
        return work.tasks(work.ready())

    def _trials(self, sets: Sequence[SmallSet], images: Images, store: Any) -> Trials:
        comparison = self.comparison
        return Trials(
            sets,
            images.test,
            store,
            networks=comparison.networks,
            seeds=comparison.seeds,
            num_classes=comparison.real.train.num_classes,
            settings=comparison.evaluation,
            identity={"test": comparison.real.test.fingerprint},
            device_kind=comparison.device_kind,
        )

    def parts(self) -> tuple[float, float]:
        """Parts of the work that are done, and all: a class of a set, a preparation and a training are one each."""
        done, total = 0.0, 0.0
        for one in self.makings.values():
            classes = sum(len(unit) for unit in one.units)
            done += classes * one.done() / max(1, one.total * len(one.units))
            total += classes
        for work in self.preparing:
            done += work.steps() / max(1, work.total) * len(work.made)
            total += len(work.made)
        a_row = len(self.comparison.networks) * len(self.comparison.seeds)
        for candidate in self.comparison.candidates:
            if candidate.name not in self.judgings:
                total += a_row
        for work in self.judgings.values():
            done += len(work.trials.found)
            total += len(work.trials.all)
        return done, total

    def finished(self, wall_s: float) -> Finished:
        """What came of it, for the tables."""
        return Finished(
            comparison=self.comparison,
            sets=self.sets,
            outcomes={name: making.result for name, making in self.makings.items()},
            judged={key: Judged(work.trials, work.failures) for key, work in self.judgings.items()},
            reals=self.reals,
            experts={name: self._expert_names(making) for name, making in self.makings.items()},
            labelled=self.labelled,
            taught_by=self._files_of(self.taught_by),
            whose=self.whose,
            unlabelled=self._why_unlabelled(),
            times=self.times,
            wall_s=wall_s,
            busy_s=self.busy_s,
        )

    def _expert_names(self, making: Making) -> list[str]:
        settings = making.problem.settings
        asked = find_method(settings.method).preparations(settings)
        return self._files_of([one for one in asked if isinstance(one, Expert)], making.candidate)

    def _files_of(self, experts: Sequence[Expert], candidate: Candidate | None = None) -> list[str]:
        images = self.images.common if candidate is None else self.images.of(candidate)
        return [self._file_of(images, one) for one in experts]

    def _why_unlabelled(self) -> Failure | None:
        """The first reason for which random images have no teacher's labels; None where nothing failed."""
        of_teachers = [
            why for work in self.preparing for item, why in work.failures.items() if item in self.taught_by
        ]
        failures = [*of_teachers, *(why for one in self.teachings.values() for why in one.failures.values())]
        return failures[0] if failures else None


__all__ = ["Comparing"]
