"""Signed bundles: with the right key they load, changed ones and others never do."""

import json
import shutil

import pytest
from click.testing import CliRunner
from support import write_keys

from cxr_edge.runtime import Bundle, IntegrityError, MissingExtraError, UsageError, load
from cxr_edge.runtime.cli.bundles import inspect, sign
from cxr_edge.runtime.cli.decide import predict
from cxr_edge.runtime.predictor import packaged_model

pytest.importorskip("model_signing")
pytest.importorskip("cryptography")


@pytest.fixture
def keys(tmp_path):
    return write_keys(tmp_path / "keys")


@pytest.fixture
def signed(keys, tmp_path):
    folder = shutil.copytree(packaged_model(), tmp_path / "bundle")
    result = CliRunner().invoke(sign, [str(folder), "--key", str(keys[0])], catch_exceptions=False)
    assert result.exit_code == 0 and "model.sig" in result.output
    return folder


def edit_threshold(folder):
    manifest = folder / "manifest.json"
    data = json.loads(manifest.read_text())
    data["operating_points"][0]["threshold"] += 0.1
    manifest.write_text(json.dumps(data))


def test_a_signed_bundle_loads_with_its_key_and_without(signed, keys, tmp_path):
    assert load(signed, trusted=keys[1]).operating_point.threshold == load(signed).operating_point.threshold
    moved = signed.rename(tmp_path / "another name")
    load(moved, trusted=keys[1])


def test_a_changed_threshold_is_noticed_with_the_key_and_without(signed, keys):
    edit_threshold(signed)
    for trusted in (keys[1], None):
        with pytest.raises(IntegrityError, match=r"manifest\.json.* changed after.*sign it again"):
            load(signed, trusted=trusted)


@pytest.mark.parametrize("name", ["model.onnx", "model.int8.tflite", "parity.json", "MODEL_CARD.md"])
def test_every_file_is_covered(signed, keys, name):
    path = signed / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(IntegrityError, match=f"{name} changed after signing"):
        load(signed, trusted=keys[1])
    path.unlink()
    with pytest.raises(IntegrityError, match=name):
        load(signed, trusted=keys[1])


def test_another_key_and_no_signature_are_refused(signed, keys, tmp_path):
    _, other = write_keys(tmp_path / "other")
    with pytest.raises(IntegrityError, match=r"model\.sig: not a signature by .*other"):
        load(signed, trusted=other)
    with pytest.raises(IntegrityError, match=r"found no model\.sig"):
        load(trusted=keys[1])
    with pytest.raises(IntegrityError, match="lone file"):
        load(signed / "model.int8.tflite", trusted=keys[1])


def test_who_changes_the_digest_too_is_found_by_the_key_only(signed, keys):
    """What can be told without a key is an accident; what an attacker does needs the key."""
    import base64
    import hashlib

    before = hashlib.sha256((signed / "manifest.json").read_bytes()).hexdigest()
    edit_threshold(signed)
    after = hashlib.sha256((signed / "manifest.json").read_bytes()).hexdigest()
    envelope = json.loads((signed / "model.sig").read_text())
    payload = base64.b64decode(envelope["dsseEnvelope"]["payload"]).replace(before.encode(), after.encode())
    envelope["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    (signed / "model.sig").write_text(json.dumps(envelope))
    Bundle.open(signed)
    with pytest.raises(IntegrityError, match=r"model\.sig: not a signature"):
        load(signed, trusted=keys[1])


@pytest.mark.parametrize("text", ["", "{}", "[]", "x", '{"dsseEnvelope": {"payload": "e30="}}', "[" * 100_000])
def test_a_signature_that_is_none_is_refused_with_the_key_and_without(signed, keys, text):
    (signed / "model.sig").write_text(text)
    for trusted in (keys[1], None):
        with pytest.raises(ValueError, match=r"model\.sig"):
            Bundle.open(signed, trusted)


def test_nothing_added_after_signing_is_used(signed, keys):
    """A plan is code and parity.json a verdict: who could add them could do anything."""
    (signed / "parity.json").unlink()
    assert CliRunner().invoke(sign, [str(signed), "--key", str(keys[0])]).exit_code == 0
    shutil.copy(packaged_model() / "parity.json", signed)
    plan = {"path": "p.engine", "engine": "tensorrt", "precision": "fp16", "sha256": "0" * 64, "bytes": 3}
    (signed / "p.engine.json").write_text(json.dumps({"file": plan}))
    (signed / "p.engine").write_bytes(b"xyz")
    trusted, plain = Bundle.open(signed, keys[1]), Bundle.open(signed)
    assert plain.find("tensorrt") and trusted.find("tensorrt") is None
    file = trusted.find("onnx")
    assert plain.verified(file) is True and trusted.verified(file) is None


def test_a_plan_that_was_there_is_signed_too(signed, keys):
    import hashlib

    plan = {"path": "p.engine", "engine": "tensorrt", "precision": "fp16", "bytes": 3}
    plan["sha256"] = hashlib.sha256(b"xyz").hexdigest()
    (signed / "p.engine.json").write_text(json.dumps({"file": plan}))
    (signed / "p.engine").write_bytes(b"xyz")
    assert CliRunner().invoke(sign, [str(signed), "--key", str(keys[0])]).exit_code == 0
    assert Bundle.open(signed, keys[1]).find("tensorrt").path == "p.engine"
    (signed / "p.engine").write_bytes(b"xyx")
    with pytest.raises(IntegrityError, match=r"p\.engine changed"):
        Bundle.open(signed, keys[1])


def test_an_unsound_bundle_is_not_signed(keys, tmp_path):
    folder = shutil.copytree(packaged_model(), tmp_path / "bundle")
    (folder / "model.onnx").write_bytes(b"another")
    result = CliRunner().invoke(sign, [str(folder), "--key", str(keys[0])])
    assert isinstance(result.exception, IntegrityError) and not (folder / "model.sig").exists()


def test_an_encrypted_key_wants_its_password(tmp_path):
    private, public = write_keys(tmp_path / "keys", b"secret")
    folder = shutil.copytree(packaged_model(), tmp_path / "bundle")
    arguments = [str(folder), "--key", str(private)]
    assert isinstance(CliRunner().invoke(sign, arguments).exception, UsageError)
    assert isinstance(CliRunner().invoke(sign, [*arguments, "--password", "wrong"]).exception, UsageError)
    assert CliRunner().invoke(sign, [*arguments, "--password"], input="secret\n").exit_code == 0
    load(folder, trusted=public)


def test_a_key_that_is_none_is_named(signed, keys, tmp_path):
    with pytest.raises(UsageError, match=r"key\.pem: not a public key"):
        load(signed, trusted=keys[0])
    with pytest.raises(UsageError, match="absent: not a public key"):
        load(signed, trusted=tmp_path / "absent")
    result = CliRunner().invoke(sign, [str(signed), "--key", str(keys[1])])
    assert isinstance(result.exception, UsageError) and "openssl" in str(result.exception)


def test_commands_take_the_key(signed, keys):
    shown = CliRunner().invoke(inspect, [str(signed), "--trusted", str(keys[1])])
    count = sum(path.is_file() and path.name != "model.sig" for path in signed.rglob("*"))
    assert shown.exit_code == 0 and f"key.pub, over {count} files" in shown.output
    assert "not checked: name the public key" in CliRunner().invoke(inspect, [str(signed)]).output
    edit_threshold(signed)
    for command, arguments in ((inspect, [str(signed)]), (predict, ["-m", str(signed), "x.jpeg"])):
        result = CliRunner().invoke(command, [*arguments, "--trusted", str(keys[1])])
        assert isinstance(result.exception, IntegrityError)


@pytest.mark.slow
def test_the_package_s_own_command_agrees(signed, keys):
    import subprocess
    import sys

    words = [sys.executable, "-m", "model_signing", "verify", "key", signed, "--signature", signed / "model.sig"]
    words += ["--public_key", keys[1]]
    assert subprocess.run(words, capture_output=True).returncode == 0
    edit_threshold(signed)
    assert subprocess.run(words, capture_output=True).returncode != 0


def test_without_the_package_the_extra_is_named(signed, keys, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(MissingExtraError, match=r"cxr-edge\[sign\]"):
        load(signed, trusted=keys[1])
    load(signed)
