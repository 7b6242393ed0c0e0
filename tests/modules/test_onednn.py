"""Which library multiplies: the processor and a variable decide."""

import pytest
import torch

from src.errors import UserError
from src.modules import onednn as module
from src.modules.onednn import uses_onednn


@pytest.mark.parametrize(
    "variable, vendor, capability, present, expected",
    [
        ("", "AuthenticAMD", "AVX512", True, True),
        ("", "AuthenticAMD", "AVX2", True, False),
        ("", "GenuineIntel", "AVX512", True, False),
        ("", "", "DEFAULT", True, False),  # no x86 processor
        ("", "AuthenticAMD", "AVX512", False, False),
        ("0", "AuthenticAMD", "AVX512", True, False),
        ("1", "GenuineIntel", "AVX2", True, True),
    ],
)
def test_the_processor_decides(monkeypatch, variable, vendor, capability, present, expected):
    monkeypatch.setenv(module.VARIABLE, variable)
    monkeypatch.setattr(module, "_vendor", lambda: vendor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: present)
    assert uses_onednn.__wrapped__() == expected


def test_the_vendor_is_that_of_the_processor(monkeypatch):
    text = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: EPYC\n"
    monkeypatch.setattr(module.Path, "read_text", lambda *_, **__: text)
    assert module._vendor() == "AuthenticAMD"

    def missing(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(module.Path, "read_text", missing)  # elsewhere than on Linux
    assert module._vendor() == ""


@pytest.mark.parametrize("value, present", [("yes", True), ("1", False)])
def test_refused_settings(monkeypatch, value, present):
    monkeypatch.setenv(module.VARIABLE, value)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: present)
    with pytest.raises(UserError, match=f"SRP_ONEDNN={value}"):
        uses_onednn.__wrapped__()
