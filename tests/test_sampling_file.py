"""`prefopt sample`: kept while it comes, continued after a kill, the same from a server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prefopt.data.formats import read_groups
from prefopt.errors import DataError, RecipeError, RunError
from prefopt.records import Message
from prefopt.sampling.keeping import answer_into, to_groups
from prefopt.sampling.sampler import Sample, Sampler, ServerSampler, make_sampler, seed_of
from prefopt.sampling.server import Server
from prefopt.sampling.settings import Settings
from tests.conftest import ROOT
from tests.faulty_server import Fault, faulty_server, status

Call = Callable[..., tuple[int, str, str]]
PROMPTS = [f"prompt {number}" for number in range(8)]


class Machine:
    """A sampler that answers at once, and counts what it was asked."""

    name = "machine"

    def __init__(
        self, version: int = 1, breaks_after: int | None = None, refuses: Any = ()
    ) -> None:
        self.version = version
        self.asked: list[Any] = []
        self.breaks_after = breaks_after
        self.refuses = refuses

    def identity(self) -> dict[str, Any]:
        return {"version": self.version}

    def sample_all(
        self, prompts: Any, settings: Settings, on_done: Any = None, on_refused: Any = None
    ) -> Any:
        answers: list[Any] = []
        for position, prompt in enumerate(prompts):
            if len(self.asked) == self.breaks_after:
                raise KeyboardInterrupt
            self.asked.append(prompt)
            if prompt in self.refuses:
                answers.append([])
                on_refused(position, DataError(f"{prompt} is too long", kind="too_long"))
                continue
            answers.append([Sample(f"{prompt}!" * (1 + i % 2), "end") for i in range(settings.n)])
            on_done(position, answers[-1])
        return answers


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    return file


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_was_answered_is_not_asked_again(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    settings = Settings(n=3)
    first = answer_into(whole, Machine(), PROMPTS, settings)
    assert (first.prompts, first.completions, first.duplicates, first.from_before) == (8, 24, 8, 0)
    broken = Machine(breaks_after=3)
    with pytest.raises(KeyboardInterrupt, match="3 of 8 prompts are answered, and kept"):
        answer_into(parts, broken, PROMPTS, settings)
    assert _names(tmp_path) == {"whole.jsonl", "whole.jsonl.manifest", ".parts.jsonl.part"}
    with open(tmp_path / ".parts.jsonl.part", "ab") as handle:
        handle.write(b'{"prompt": "ab')  # a kill in the middle of a line
    further = Machine(breaks_after=2)
    with pytest.raises(KeyboardInterrupt, match="5 of 8"):
        answer_into(parts, further, PROMPTS, settings)
    again = Machine()
    done = answer_into(parts, again, PROMPTS, settings)
    assert broken.asked + further.asked + again.asked == PROMPTS
    assert done.from_before == 5
    assert parts.read_bytes() == whole.read_bytes()
    assert _names(tmp_path) == {
        f"{n}.jsonl{e}" for n in ("whole", "parts") for e in ("", ".manifest")
    }
    assert len(list(read_groups(str(tmp_path)).files)) == 2  # a folder of samples is data
    idle = Machine()
    assert answer_into(whole, idle, PROMPTS, settings).from_before == 8
    assert idle.asked == []


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"settings": Settings(n=3, temperature=0.5)}, "settings.temperature was 1.0 and is 0.5"),
        ({"sampler": Machine(2)}, "sampler.version was 1 and is 2"),
        ({"prompts": PROMPTS[:5]}, "prompts.count was 8 and is 5"),
        ({"duplicates": "drop"}, "duplicates was 'keep' and is 'drop'"),
    ],
    ids=["settings", "sampler", "prompts", "duplicates"],
)
def test_other_samples_are_refused(
    tmp_path: Path, finished: bool, change: dict[str, Any], said: str
) -> None:
    out = tmp_path / "samples.jsonl"
    asked = {"sampler": Machine(), "prompts": PROMPTS, "settings": Settings(n=3)}
    if finished:
        answer_into(out, **asked)  # type: ignore[arg-type]
    else:
        with pytest.raises(KeyboardInterrupt):
            answer_into(out, **{**asked, "sampler": Machine(breaks_after=2)})  # type: ignore[arg-type]
    with pytest.raises(RunError) as caught:
        answer_into(out, **{**asked, **change})
    assert said in caught.value.message
    assert "--overwrite" in str(caught.value.remedy)
    done = answer_into(out, **{**asked, **change}, overwrite=True)
    assert done.from_before == 0
    assert done.prompts == len(list(read_groups(out)))


def test_a_file_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "samples.jsonl"
    out.write_text("mine")
    with pytest.raises(RunError, match="no sampling finished"):
        answer_into(out, Machine(), PROMPTS, Settings())
    assert (out.read_text(), _names(tmp_path)) == ("mine", {"samples.jsonl"})
    answer_into(out, Machine(), PROMPTS, Settings(), overwrite=True)
    with open(out, "a") as handle:
        handle.write("\n")
    with pytest.raises(RunError, match="was changed"):
        answer_into(out, Machine(), PROMPTS, Settings())
    out.unlink()  # then there is nothing to protect
    assert answer_into(out, Machine(), PROMPTS, Settings()).from_before == 0


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    out = tmp_path / "samples.jsonl"

    class Meddling(Machine):
        def sample_all(self, *arguments: Any) -> Any:
            with pytest.raises(RunError, match="another process"):
                answer_into(out, Machine(), PROMPTS, Settings())
            return super().sample_all(*arguments)

    assert answer_into(out, Meddling(), PROMPTS, Settings()).prompts == 8


def test_what_is_refused_is_left_out_and_asked_again(tmp_path: Path) -> None:
    out, part = tmp_path / "samples.jsonl", tmp_path / ".samples.jsonl.part"

    def run(machine: Machine) -> Any:
        return answer_into(out, machine, PROMPTS, Settings(n=2), skip_refused=True)

    def kept() -> list[Any]:
        return [group.prompt for group in read_groups(out)]

    bad = [PROMPTS[0], PROMPTS[4]]
    first = run(Machine(refuses=bad))
    assert (first.prompts, first.completions, first.from_before) == (6, 12, 0)
    assert [dict(refusal) for refusal in first.refusals] == [
        {"prompt": prompt, "why": f"{prompt} is too long"} for prompt in bad
    ]
    assert kept() == [prompt for prompt in PROMPTS if prompt not in bad]
    manifest = json.loads((tmp_path / "samples.jsonl.manifest").read_text())
    assert manifest["result"]["refusals"][1]["prompt"] == PROMPTS[4]
    assert _names(tmp_path) == {"samples.jsonl", "samples.jsonl.manifest", part.name}
    # A process that is refused something else, or stopped, loses nothing of it.
    with pytest.raises(RunError):
        answer_into(out, Machine(), PROMPTS, Settings(n=3), skip_refused=True)
    stopped = Machine(breaks_after=0)
    with pytest.raises(KeyboardInterrupt, match="6 of 8"):
        run(stopped)
    assert part.exists() and len(kept()) == 6
    again = Machine(refuses=bad[1:])
    second = run(again)
    assert again.asked == bad
    assert (second.prompts, second.from_before, len(second.refusals)) == (7, 6, 1)
    assert kept() == [prompt for prompt in PROMPTS if prompt != bad[1]]
    last = Machine()
    assert run(last).prompts == 8
    assert (last.asked, kept()) == (bad[1:], PROMPTS)
    assert _names(tmp_path) == {"samples.jsonl", "samples.jsonl.manifest"}
    idle = Machine()
    assert run(idle).from_before == 8 and idle.asked == []


def test_a_kill_before_the_second_manifest_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefopt.sampling import keeping

    out = tmp_path / "samples.jsonl"
    answer_into(out, Machine(refuses=PROMPTS[:1]), PROMPTS, Settings(), skip_refused=True)
    with monkeypatch.context() as patch:
        patch.setattr(keeping, "write_text", lambda *_: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            answer_into(out, Machine(), PROMPTS, Settings(), skip_refused=True)
    idle = Machine()
    assert answer_into(out, idle, PROMPTS, Settings(), skip_refused=True).prompts == 8
    assert idle.asked == []


def test_nothing_is_written_where_every_prompt_is_refused(tmp_path: Path) -> None:
    out, machine = tmp_path / "samples.jsonl", Machine(refuses=PROMPTS)
    with pytest.raises(DataError, match=r"prompt 0 is too long \(and so with all 8 prompts\)"):
        answer_into(out, machine, PROMPTS, Settings(), skip_refused=True)
    assert not out.exists()
    assert answer_into(out, Machine(), PROMPTS, Settings()).prompts == 8


def test_groups_say_how_completions_ended() -> None:
    samples = [
        [Sample("a", "end"), Sample("b", "length"), Sample("a", "stop")],
        [Sample("c", "end")],
    ]
    kept = to_groups(["x", "y"], samples, "me")
    assert [[c.text for c in group.completions] for group in kept] == [["a", "b", "a"], ["c"]]
    assert [dict(group.meta) for group in kept] == [{"finish": ["end", "length", "stop"]}, {}]
    dropped = to_groups(["x", "y"], samples, "me", "drop")
    assert [c.text for c in dropped[0].completions] == ["a", "b"]
    assert dropped[0].meta == {"finish": ["end", "length"]}
    assert {c.source for group in kept for c in group.completions} == {"me"}


# -- samplers ------------------------------------------------------------------------------


def test_one_door_to_samplers(tiny_policy_folder: Path) -> None:
    with faulty_server() as web:
        for spec in (web.url, f"server:{web.url}", {"server": web.url, "model": "tiny"}):
            sampler = make_sampler(spec)
            assert isinstance(sampler, ServerSampler)
            assert isinstance(sampler, Sampler)
            assert sampler.name == "tiny"
        assert sampler.identity()["url"] == web.url
    local = make_sampler({"policy": str(tiny_policy_folder), "device": "cpu", "batch_size": 2})
    assert isinstance(local, Sampler)
    assert local.name == str(tiny_policy_folder)
    assert set(local.identity()) == {"kind", "model", "tokenizer"}
    for wrong in ({}, {"server": "http://x", "policy": "y"}, {"policy": "y", "model": "z"}):
        with pytest.raises(RecipeError):
            make_sampler(wrong)


def test_a_server_is_asked_for_the_settings_and_seeds_of_its_own() -> None:
    settings = Settings(n=2, max_new_tokens=7, temperature=0.5, top_p=0.9, seed=4, stop=("x",))
    chat = (Message("user", "b"),)
    with faulty_server() as web:
        server = Server(web.url, concurrency=1)
        samples = ServerSampler(server).sample_all(["a", chat, "a"], settings)
        ServerSampler(server, as_chat=True).sample_all(["a"], settings)
    assert [[sample.text for sample in own] for own in samples] == [
        ["answer 0 to a", "answer 1 to a"],
        ["answer 0 to b", "answer 1 to b"],
        ["answer 0 to a", "answer 1 to a"],
    ]
    bodies = [request.body for request in web.seen]
    common = {"n": 2, "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "stop": ["x"]}
    assert all(common.items() <= body.items() for body in bodies)
    seeds = [body["seed"] for body in bodies]
    assert len(set(seeds[:3])) == 3  # of a prompt that comes twice as well
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert seed_of(4, b"x", 0) != seed_of(5, b"x", 0)
    assert bodies[3]["messages"] == [{"role": "user", "content": "a"}]


def test_a_policy_on_this_machine_goes_on_where_it_was(
    make_policy: Callable[..., Any], tmp_path: Path
) -> None:
    """Interrupted twice, in other batches: the file is the same to the byte."""
    from prefopt.sampling.sampler import LocalSampler

    policy, settings = make_policy(), Settings(n=3, max_new_tokens=8, seed=5, stop=("e",))
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    answer_into(whole, LocalSampler(policy), PROMPTS, settings)

    def until(limit: int) -> Callable[[int, int], None]:
        def progress(done: int, total: int) -> None:
            if done == limit:
                raise KeyboardInterrupt

        return progress

    for limit in (2, 5):
        sampler = LocalSampler(policy, batch_size=limit)
        with pytest.raises(KeyboardInterrupt, match=f"{limit} of 8"):
            answer_into(parts, sampler, PROMPTS, settings, progress=until(limit))
    assert answer_into(parts, LocalSampler(policy), PROMPTS, settings).from_before == 5
    assert parts.read_bytes() == whole.read_bytes()
    finishes = {end for group in read_groups(whole) for end in group.meta.get("finish", ())}
    assert {"stop", "length"} <= finishes


def test_a_server_is_asked_without_torch() -> None:
    program = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from prefopt.sampling.keeping import answer_into\n"
        "from prefopt.sampling.sampler import make_sampler\n"
        "from prefopt.sampling.selecting import select_all\n"
        "from prefopt.sampling.settings import Settings\n"
        "print(make_sampler(sys.argv[1]).sample_all(['a'], Settings())[0][0].text)"
    )
    with faulty_server() as web:
        done = subprocess.run(
            [sys.executable, "-c", program, web.url], capture_output=True, text=True
        )
    assert (done.stdout, done.stderr) == ("answer 0 to a\n", "")


# -- the command ---------------------------------------------------------------------------


def _one(out: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(out)
    return found


def test_a_server_that_fails_for_good_keeps_what_it_gave(
    call: Call, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "samples.jsonl"
    refused = threading.Event()

    def until(number: int, body: dict[str, Any]) -> Fault | None:
        return status(500, "no more") if number >= 5 and not refused.is_set() else None

    with faulty_server(until) as web:
        command = ("sample", prompts, "--server", web.url, "-n", 2, "--concurrency", 1,
                   "--retries", 1, "--out", out, "--json")  # fmt: skip
        code, said, _ = call(*command)
        assert code == 1
        assert "(5 of 8 prompts are answered, and kept)" in _one(said)["error"]["message"]
        assert not out.exists()
        refused.set()
        code, said, _ = call(*command)
        assert (code, _one(said)["from_before"]) == (0, 5)
        assert Counter(web.answered) == Counter(PROMPTS)  # nothing lost, nothing asked twice
        assert call(*command[:-1])[1].startswith(f"{out} has all 16 completions already.")
        assert len(web.seen) == 8 + 3  # once more, and whether it was the prompt
    manifest = json.loads((tmp_path / "samples.jsonl.manifest").read_text())
    assert manifest["asked"]["sampler"]["model"] == "tiny"
    assert manifest["asked"]["settings"]["n"] == 2
    groups = list(read_groups(out))
    assert [group.prompt for group in groups] == PROMPTS
    assert groups[0].completions[1].text == "answer 1 to prompt 0"


TOO_LONG = "This model's maximum context length is 32 tokens."


def test_prompts_that_are_too_long_for_a_server(call: Call, prompts: Path, tmp_path: Path) -> None:
    """Counted, shown in the server's words, and asked again when the same command is given."""
    out, bad = tmp_path / "samples.jsonl", {"prompt 0", "prompt 6"}
    models = [{"id": "tiny", "owned_by": "vllm", "max_model_len": 32}]

    def refuse(_: int, body: dict[str, Any]) -> Fault | None:
        return status(400, TOO_LONG) if body["prompt"] in bad else None

    with faulty_server(refuse, models=models) as web:
        command = ("sample", prompts, "--server", web.url, "-n", 2, "--out", out)
        code, said, _ = call(*command)
        assert code == 0
        assert "Wrote 12 completions of 6 prompts" in said
        assert "2 of 8 prompts cannot be answered; the same command asks for them again:" in said
        assert "prompt 6" in said and TOO_LONG in " ".join(said.split())
        code, said, _ = call(*command, "--json")
        found = _one(said)
        assert (code, found["prompts"], found["from_before"], found["refused"]) == (0, 6, 6, 2)
        assert [row["prompt"] for row in found["refusals"]] == ["prompt 0", "prompt 6"]
        assert all(f"400: {TOO_LONG}" in row["why"] for row in found["refusals"])
        _, said, _ = call(*command[:-2], "--json")  # without a file
        assert (len(_one(said)["samples"]), _one(said)["refused"]) == (6, 2)
        assert "2 of 8 prompts cannot" in call(*command[:-2])[1]
        bad.clear()
        models[0]["max_model_len"] = 64
        assert _one(call(*command, "--json")[1])["refused"] == 0
    assert [group.prompt for group in read_groups(out)] == PROMPTS
    assert Counter(web.answered) - Counter(["Hello"] * 9) == Counter(
        {prompt: 3 if prompt not in ("prompt 0", "prompt 6") else 1 for prompt in PROMPTS}
    )


def test_only_what_is_too_long_is_left(call: Call, prompts: Path, tmp_path: Path) -> None:
    """After a server that failed for good only a refused prompt is open: it ends well."""
    out, dead = tmp_path / "samples.jsonl", threading.Event()

    def fault(_: int, body: dict[str, Any]) -> Fault | None:
        if body["prompt"] != "prompt 7":
            return None
        return status(400, TOO_LONG) if dead.is_set() else status(503)

    with faulty_server(fault) as web:
        command = ("sample", prompts, "--server", web.url, "--retries", 0, "--out", out, "--json")
        assert call(*command)[0] == 1
        dead.set()
        code, said, _ = call(*command)
    assert (code, _one(said)["prompts"], _one(said)["refused"]) == (0, 7, 1)


def test_prompts_that_are_too_long_for_a_policy(
    call: Call, tiny_policy_folder: Path, tmp_path: Path
) -> None:
    file, out = tmp_path / "prompts.jsonl", tmp_path / "samples.jsonl"
    texts = ["short", "long " * 600, "brief"]
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    command = ("sample", tiny_policy_folder, file, "--max-new-tokens", 4, "-n", 2, "--json")
    _, said, _ = call(*command, "--out", out)
    found = _one(said)
    assert (found["prompts"], found["completions"], found["refused"]) == (2, 4, 1)
    assert "longer than the 512" in found["refusals"][0]["why"]
    _, said, _ = call("sample", tiny_policy_folder, "--prompt", "short", "--prompt", "brief",
                      *command[3:])  # fmt: skip
    assert [g.completions for g in read_groups(out)] == [
        g.completions for g in read_groups_of(_one(said)["samples"])
    ]
    code, said, _ = call("sample", tiny_policy_folder, "--prompt", texts[1], "--json")
    assert (code, _one(said)["error"]["type"]) == (2, "DataError")


def read_groups_of(rows: list[dict[str, Any]]) -> list[Any]:
    from prefopt.records import from_json

    return [from_json(row) for row in rows]


def test_texts_that_no_file_and_no_terminal_takes(
    call: Call, prompts: Path, tmp_path: Path
) -> None:
    """Half a character, which JSON can say; codes that would change the terminal."""
    out = tmp_path / "samples.jsonl"
    with faulty_server(say=lambda *_: "a\ud83d \x1b[31mb") as web:
        command = ("sample", prompts, "--server", web.url)
        assert call(*command, "--out", out)[0] == 0
        code, shown, _ = call(*command)
    assert [c.text for c in next(iter(read_groups(out))).completions] == ["a\ufffd \x1b[31mb"]
    assert (code, "a\ufffd \ufffd[31mb" in shown, "\x1b[31m" in shown) == (0, True, False)
    with faulty_server(lambda *_: status(403, "\x1b[2Jno \x07way")) as web:
        error = call("sample", prompts, "--server", web.url)[2]
    assert "\ufffd[2Jno \ufffdway" in error


def test_the_same_without_a_file(call: Call, prompts: Path) -> None:
    with faulty_server() as web:
        code, out, _ = call("sample", web.url, prompts, "-n", 2, "--duplicates", "drop", "--json")
        web.say = lambda body, index: "same"
        _, dropped, _ = call("sample", web.url, prompts, "-n", 2, "--duplicates", "drop", "--json")
    assert (code, _one(out)["completions"], _one(out)["duplicates"]) == (0, 16, 0)
    assert (_one(dropped)["completions"], _one(dropped)["duplicates"]) == (8, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--server http://x.invalid --prompt a --device cpu", "--device"),
        ("http://x.invalid --prompt a --batch-size 3", "--batch-size"),
        ("folder --prompt a --model m", "--model"),
        ("folder --prompt a --as-chat", "--as-chat"),
        ("--prompt a", "POLICY"),
        ("folder --prompt a --overwrite", "--overwrite"),
        ("--server nonsense --prompt a", "not the URL"),
        ("--server http://x.invalid --prompt a --key NO_SUCH_KEY", "NO_SUCH_KEY"),
        ("--server http://127.0.0.1:9 --prompt a", "no connection"),
    ],
)
def test_wrong_commands(call: Call, arguments: str, message: str) -> None:
    code, _, error = call("sample", *arguments.split())
    assert code in (1, 2)
    assert message in error
    assert "Traceback" not in error


@pytest.fixture
def served(tiny_policy_folder: Path) -> Iterator[str]:
    """The URL of a real server with a tiny policy, in a process of its own."""
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.serving_policy", str(tiny_policy_folder)],
        stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert child.stdout is not None
    yield child.stdout.readline().strip()
    child.kill()
    child.wait()
    child.stdout.close()


def test_a_real_server_with_a_tiny_model(
    call: Call, served: str, prompts: Path, tmp_path: Path, tiny_policy_folder: Path
) -> None:
    """Greedy, the same texts as of the policy on this machine; sampled, the same twice."""
    chats = tmp_path / "chats.jsonl"
    chats.write_text(json.dumps({"prompt": [{"role": "user", "content": "Hello"}]}) + "\n")
    greedy = (prompts, chats, "--temperature", 0, "--max-new-tokens", 12, "--json")
    _, there, _ = call("sample", "--server", served, *greedy)
    _, here, _ = call("sample", tiny_policy_folder, *greedy)
    texts = [[c["text"] for c in row["completions"]] for row in _one(there)["samples"]]
    assert texts == [[c["text"] for c in row["completions"]] for row in _one(here)["samples"]]
    assert _one(there)["samples"][0]["completions"][0]["source"] == "tiny"
    assert _one(there)["cut"] == _one(here)["cut"]
    drawn = (prompts, "-n", 4, "--max-new-tokens", 12, "--seed", 3)
    for name in ("one", "two"):
        command = ("sample", "--server", served, *drawn, "--concurrency", 3)
        assert call(*command, "--out", tmp_path / f"{name}.jsonl")[0] == 0
    one, two = (list(read_groups(tmp_path / f"{name}.jsonl")) for name in ("one", "two"))
    assert one == two
    assert len({c.text for group in one for c in group.completions}) > 20


def test_a_killed_command_goes_on(prompts: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle; then what was answered is not asked again, and the file is whole."""
    out = tmp_path / "samples.jsonl"
    asked: list[str] = []

    def slowly(number: int, body: dict[str, Any]) -> None:
        asked.append(body["prompt"])
        time.sleep(0.2 if len(asked) > 3 else 0)

    with faulty_server(slowly) as web:
        arguments = [sys.executable, "-m", "prefopt", "sample", str(prompts), "--server", web.url,
                     "--concurrency", "1", "--out", str(out)]  # fmt: skip
        child = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
        part = tmp_path / ".samples.jsonl.part"
        while len(asked) < 5:
            time.sleep(0.01)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        answered = part.read_bytes().count(b"\n") - 1
        assert answered >= 3
        assert not out.exists()
        before = len(asked)
        subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
        assert asked[before:] == PROMPTS[answered:]
    assert [group.prompt for group in read_groups(out)] == PROMPTS
    assert not part.exists()
