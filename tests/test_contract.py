"""Every configured method keeps every promise of benchmark/promises.py, on a tiny model."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmark import check, promises
from benchmark.compose import CONFIGS
from benchmark.trial import Skip, Subject, subject

METHODS = sorted(path.stem for path in (CONFIGS / "method").glob("*.yaml"))
MODES = [  # whose fields mean nothing in the method's own config
    "free_bits method.floor=null method.target=1 method.per=group_batch method.groups=2",
    "temporal_delta_vae method.alpha=null method.target=2 method.channels=2",
    "beta_vae method.beta=null method.target=1 method.weight=1 method.ramp=0.5",
    "geco method.gain=null method.kappa=2",
    "bn_vae method.gamma=null method.target=2",
    "vmf_vae method.kappa=null method.target=2",
    "mmd_vae method.kernel=rbf method.alpha=0.5",
    "twr_vae method.code=mean method.share=0.25",
    "sa_vae method.teacher=refined_posterior",
    "neural_outlines method.encoder=tests.outlines:bag method.pretraining=null",
    "stack method.of=[delta_vae,word_dropout] method.parts.delta_vae.delta=0.3",
]


@pytest.fixture(scope="module")
def tried():
    """The subject of a method's config; one at a time is kept, since tests come config by config
    and its promises share what it has trained."""
    with ExitStack() as stack:
        kept: dict[str, Subject] = {}

        def of(name: str) -> Subject:
            if name not in kept:
                stack.pop_all().close()
                kept.clear()
                (config,) = check.configure(f"method={name}".split())
                kept[name] = stack.enter_context(subject(config))
            return kept[name]

        yield of


@pytest.mark.parametrize("promise", promises.PROMISES, ids=lambda p: p.__name__)
@pytest.mark.parametrize("name", [*METHODS, *MODES])
def test_promise(name, promise, tried):
    try:
        assert promises.findings(promise, tried(name)) == []
    except Skip as reason:
        pytest.skip(str(reason))


def test_every_method_has_a_config_of_its_name():
    files = {path.stem for path in Path(CONFIGS.parent, "methods").glob("[!_]*.py")}
    assert files <= {*METHODS}
