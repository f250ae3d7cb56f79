"""Memory in large pages: what is asked for, and that nothing else changes."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from quintet import pages
from quintet.checkpoint.tensorfile import TensorFile
from quintet.pages import ask_for_large_pages, copy_in_large_pages

ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
needs_large_pages = pytest.mark.skipif(not ENABLED.exists(), reason="this kernel has no large pages")


def asked(address: int) -> bool:
    """Whether somebody asked for large pages for the memory at an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace").splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return "hg" in line.split()
    raise AssertionError(f"nothing is mapped at {address:x}")


@needs_large_pages
def test_memory_of_a_large_tensor_is_asked_for_in_large_pages() -> None:
    # memory of its own: the allocator's may have been somebody's who had asked
    made = torch.frombuffer(mmap.mmap(-1, 5 * pages.LARGE), dtype=torch.uint8)
    middle = -(-made.data_ptr() // pages.LARGE) * pages.LARGE + pages.LARGE
    assert not asked(middle)
    ask_for_large_pages(made)
    assert asked(middle)


def test_what_has_no_whole_page_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int, int]] = []
    monkeypatch.setattr(pages, "_madvise", lambda: lambda *call: calls.append(call))
    whole = torch.empty(4 * pages.LARGE, dtype=torch.uint8)
    first = -whole.data_ptr() % pages.LARGE  # of a page
    for part in (whole[:0], whole[first + 1 : first + pages.LARGE], whole[first + 1 : first + 2 * pages.LARGE - 1]):
        ask_for_large_pages(part)
    assert not calls
    ask_for_large_pages(whole[first + 1 : first + 3 * pages.LARGE - 1])
    assert [(begin - whole.data_ptr(), size) for begin, size, _ in calls] == [(first + pages.LARGE, pages.LARGE)]


@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (1100, 2000)])
def test_a_copy_is_the_tensor_in_its_order_and_perhaps_another_type(shape: tuple[int, ...]) -> None:
    given = torch.randn(shape)
    for dtype in (None, torch.bfloat16):
        made = copy_in_large_pages(given, dtype)
        assert made.data_ptr() != given.data_ptr() or not given.numel()
        torch.testing.assert_close(made, given.to(dtype or given.dtype), rtol=0, atol=0)
    if given.dim() == 2:
        turned = copy_in_large_pages(given.t())
        assert turned.is_contiguous()
        assert torch.equal(turned, given.t())


def test_it_works_where_no_system_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_madvise", lambda: None)
    given = torch.randn(1100, 2000)
    assert torch.equal(copy_in_large_pages(given), given)


@needs_large_pages
def test_a_mapped_file_is_asked_for_in_large_pages(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3 * pages.LARGE, dtype=torch.uint8)}, tmp_path / "model.safetensors")
    file = TensorFile.open(tmp_path / "model.safetensors")
    assert asked(file.get("a").data_ptr() + pages.LARGE)
