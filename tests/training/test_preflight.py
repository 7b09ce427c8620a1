"""Compiling for absent machines: collectives in HLO, topologies, and settings that would fit."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import preflight as typed
from errors import ConfigError, DeviceMemoryError
from settings.changes import with_changes
from settings.tree import freeze
from training import mesh as meshes
from training.preflight import check, memory_estimate, report, topology
from training.preflight.hlo_collectives import CollectiveTraffic, parse_collectives
from training.program import make_program
from training.settings import Settings, defaults, resolve

ROOT = Path(__file__).parents[2]
WITHOUT_LIBTPU = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (--extra tpu)"
)

HLO = """HloModule jit_step

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %w = bf16[4,8]{1,0} get-tuple-element(%p), index=1
  %ag = bf16[16,8]{1,0} all-gather(%w), dimensions={0}
  %rs = (f32[2,8]{1,0}, f32[8,8]{1,0}) reduce-scatter-start(%x, %y), to_apply=%add
  ROOT %t = (s32[], bf16[4,8]) tuple(%i, %w)
}

%cond (p: (s32[], bf16[4,8])) -> pred[] {
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%unnoted (p: (s32[], bf16[4,8])) -> pred[] {
  %n = s32[]{:T(128)} constant(3)
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT, metadata={op_name="cond/lt"}
}

%fused.1 (p: f32[2,4]) -> (f32[2,4], f32[8,4]) {
  %ag.1 = f32[8,4]{1,0:T(8,128)} all-gather(%p), frontend_attributes={chain_id="7"}
  ROOT %go = (f32[2,4], f32[8,4]) custom-call(%ag.1), custom_call_target="AsyncCollectiveStart"
}

%fused.2 (p: f32[2,4]) -> f32[8,4] {
  %ag.2 = f32[8,4]{1,0:T(8,128)} all-gather(%p), frontend_attributes={chain_id="7"}
  ROOT %end = f32[8,4] custom-call(%p, %ag.2), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.9 (p: f32[8,4]) -> f32[2,4] {
  %ar.9 = f32[8,4]{1,0} all-reduce(%p), to_apply=%add
  ROOT %cut = f32[2,4]{1,0} dynamic-slice(%ar.9, %i), dynamic_slice_sizes={2,4}
}

%fusions (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %a = (f32[2,4], f32[8,4]) fusion(%q), kind=kCustom, calls=%fused.1
  %b = f32[8,4] fusion(%a), kind=kCustom, calls=%fused.2
  ROOT %c = f32[2,4] fusion(%b), kind=kCustom, calls=%all-reduce-scatter.9
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %loop = (s32[], bf16[4,8]) while(%init), condition=%cond, body=%body, \
backend_config={"known_trip_count":{"n":"5"}}
  %more = (s32[], bf16[4,8]) while(%loop), condition=%unnoted, body=%fusions
  %start = (f32[8]{0}, f32[32]{0}) all-gather-start(%x), dimensions={0}
  %done = f32[32]{0} all-gather-done(%start)
  ROOT %out = f32[8]{0} all-reduce(%x), to_apply=%add
}
"""


def test_collectives_are_counted_with_the_loops_that_run_them():
    assert parse_collectives(HLO) == {
        "all-gather": CollectiveTraffic(5 + 1 + 3, 5 * 16 * 8 * 2 + 32 * 4 + 3 * 8 * 4 * 4),
        "all-reduce": CollectiveTraffic(1, 8 * 4),
        "reduce-scatter": CollectiveTraffic(5 + 3, 5 * 8 * 8 * 4 + 3 * 8 * 4 * 4),
    }


def test_collectives_of_a_compiled_function():
    """Three matrix products whose contracted axis is sharded over eight devices."""
    mesh = meshes.make_mesh(meshes.MeshConfig(data=1, model=8))
    x = jax.ShapeDtypeStruct((16, 32), "float32", sharding=place(mesh, None, "model"))
    w = jax.ShapeDtypeStruct((32, 32), "float32", sharding=place(mesh, "model", None))

    def thrice(x, w):
        def body(x, _):
            return jax.lax.with_sharding_constraint(x @ w, place(mesh, None, "model")), None

        return jax.lax.scan(body, x, None, length=3)[0]

    found = parse_collectives(jax.jit(thrice).lower(x, w).compile().as_text())
    assert sum(traffic.num_calls for traffic in found.values()) == 3
    assert sum(traffic.bytes for traffic in found.values()) == 3 * 16 * 32 * 4


def place(mesh, *axes):
    return jax.sharding.NamedSharding(mesh, jax.P(*axes))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v9z:2x2", "examples: v5e:2x2, v5p:8x8x4"),
        ("v5q:2x2", "did you mean 'v5p'"),
        ("v5e", "no shape such as v5e:2x2"),
        ("v5e:2xx2", "no shape"),
        ("cpu:512", "needs 512 CPU devices"),
    ],
)
def test_an_unknown_machine_is_refused_with_those_that_are_known(name, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        topology.parse_topology(name)


def test_an_absent_compiler_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(ConfigError, match="--extra tpu"):
        topology.parse_topology("v5e:2x2")
    with pytest.raises(ConfigError, match="pip install jax-cuda13-plugin=="):
        topology.parse_topology("h100:8")


def made(devices, **changes):
    c = defaults()
    c.model.width, c.model.depth, c.train.batch_size, c.train.seq_len = 32, 2, 64, 64
    for key, value in changes.items():
        section, name = key.split("__")
        c[section][name] = value
    settings = resolve(freeze(Settings, c), 365)
    return make_program(settings, meshes.make_mesh(settings.mesh, devices))


@pytest.mark.slow
def test_what_does_not_fit_is_told_what_would(capsys):
    """On a device with 60 % of the memory that the step needs."""
    # covers P8
    program = made(jax.devices())
    result = check.try_compile(program, topology.CHIPS["cpu"])
    estimated_bytes = sum(memory_estimate.estimate(program).values())
    small = topology.CHIPS["h100"]._replace(memory_bytes=int(0.6 * result.total_bytes))
    target = topology.CompileTarget("a small machine", small, jax.devices())
    result = result._replace(fits=False)
    with pytest.raises(DeviceMemoryError, match="this fits: --config") as caught:
        check.check_fits(result, program, target, estimated_bytes)
    flags = re.findall(r"--config\.([a-z_.]+)=(\S+)", str(caught.value))
    changes = tuple((key, int(v) if v.lstrip("-").isdigit() else v) for key, v in flags)
    settings = with_changes(program.settings, dict(changes))
    changed = make_program(settings, meshes.make_mesh(settings.mesh, jax.devices()))
    assert check.try_compile(changed, small).fits
    report.print_tables(report.compile_tables(result, program, target, estimated_bytes))
    assert "does not fit" in capsys.readouterr().out
    tiny = target._replace(chip=small._replace(memory_bytes=1))
    with pytest.raises(DeviceMemoryError, match="no mesh, remat or batch"):
        check.check_fits(result, program, tiny, estimated_bytes)


def test_mild_remedies_come_before_those_that_change_the_run():
    settings = made(jax.devices(), train__grad_accum_steps=1, mesh__replica=8).settings
    ladder = list(check.setting_changes(settings, 8))
    assert ladder[0] == (("mesh.replica", 1), ("mesh.data", -1))
    assert ladder[1:3] == [(("model.remat", "dots"),), (("model.remat", "full"),)]
    batches = [i for i, changes in enumerate(ladder) if "train.batch_size" in dict(changes)]
    assert batches and batches == list(range(batches[0], len(ladder)))
    for changes in ladder:
        with_changes(settings, dict(changes))


def preflighted(*flags, timeout=280):
    """Run the command in a separate process; return its output and its exit code."""
    command = [sys.executable, "preflight.py", *flags]
    variables = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=timeout
    )
    return done.stdout + done.stderr, done.returncode


TINY = ("--config=configs/dense.py:tiny", "--config.train.batch_size=8")


@pytest.mark.slow
def test_devices_and_topology_are_commands():
    said, code = preflighted(*TINY, "--topology=cpu:4", "--config.mesh.model=2")
    assert code == 0 and "for cpu:4 (4 devices)" in said and "all-gather" in said
    said, code = preflighted(*TINY, "--topology=v5z:2x2")
    assert code == 2 and said.count("\n") == 1 and "did you mean" in said


@pytest.mark.slow
@WITHOUT_LIBTPU
def test_a_tiny_step_compiles_for_a_tpu_that_is_not_here():
    # Experts on two devices receive a ragged all-to-all, which only a TPU compiles.
    sent = ("--config=configs/moe.py:tiny", "--config.train.batch_size=8", "--config.mesh.expert=2")
    said, code = preflighted(*sent, "--topology=v5e:2x2")
    assert code == 0 and "fits" in said and "16,128.0 MiB" in said and "all-gather" in said
    assert "ragged-all-to-all" in said
    said, code = preflighted(*TINY, "--topology=v5p:3x3x3")
    assert code == 2 and "examples: v5e:2x2" in said


@pytest.mark.slow
def test_a_tiny_step_compiles_for_gpus_that_are_not_here():
    try:
        topology.parse_topology("h100:8")
    except ConfigError as error:
        pytest.skip(str(error))
    said, code = preflighted(*TINY, "--topology=h100:8")
    assert code == 0 and "for h100:8 (8 devices)" in said and "all-gather" in said


@pytest.mark.slow
@WITHOUT_LIBTPU
def test_a_model_that_is_too_large_is_refused_by_the_compiler():
    big = ("--config=configs/scale/dense8b.py", "--config.train.batch_size=8")
    said, code = preflighted(*big, "--topology=v5e:2x2")
    assert code == 77 and "Compilation failed" in said and "of 15.8 GiB" in said


@pytest.mark.parametrize(
    ("argv", "count"),
    [
        (["--devices=8"], 8),
        (["--config=x", "--devices", "8"], 8),
        (["-devices", "4"], 4),
        (["--topology=cpu:8"], 8),
        (["--topology", "cpu:2x4"], 8),
        (["--topology=v5e:2x2"], None),
        (["--devices=x"], None),
        ([], None),
    ],
)
def test_devices_are_made_however_they_are_asked_for(monkeypatch, argv, count):
    monkeypatch.setattr(typed.os, "environ", made := {"XLA_FLAGS": "--xla_a=1"})
    typed.force_host_devices(argv)
    flag = f"--xla_a=1 --xla_force_host_platform_device_count={count}" if count else "--xla_a=1"
    assert made["XLA_FLAGS"] == flag
    assert (made.get("JAX_PLATFORMS") == "cpu") == bool(argv)


@pytest.mark.parametrize(
    "message",
    [
        "Ran out of memory in memory space hbm. Used 15.90G of 15.75G hbm.",
        "Ran out of memory on HBM, the total memory required for HLO temporaries (15.90G) exceeds "
        "available HBM (15.75G).",
    ],
)
def test_a_compiler_that_refuses_a_step_says_what_it_needs(message):
    class Refused:
        def compile_step(self):
            raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {message}")

    result = check.try_compile(Refused(), topology.CHIPS["v5e"])
    assert not result.fits and result.total_bytes == int(15.9 * 2**30)
