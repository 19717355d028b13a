"""Many clients and many requests: each answer is its own, and memory does not grow."""

import concurrent.futures
import os
import threading
from pathlib import Path

import openai
import pytest

from tests.support.servers import request, status, until


def resident():
    """The bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.long
def test_sixteen_clients_get_their_own_answers(server, client, nano):
    prompts = [f"What is {n}+{n + 7}?" for n in range(10, 60)]
    wanted = {}
    for prompt in prompts:
        generation = nano.generate(prompt, temperature=0)
        for _ in generation:
            pass
        wanted[prompt] = generation.texts["answer"]

    def one(prompt):
        messages = [{"role": "user", "content": prompt}]
        try:
            found = client.chat.completions.create(model="qwq-nano", messages=messages, temperature=0)
        except openai.RateLimitError as busy:
            return prompt, float(busy.response.headers["retry-after"])
        return prompt, found.choices[0].message.content

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        found = [*pool.map(one, prompts * 4)]
    assert len(found) == 200
    assert all(answer == wanted[prompt] or answer >= 1 for prompt, answer in found)


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory of this process from Linux's /proc")
def test_memory_is_flat_over_10000_requests(server):
    body = b'{"prompt": "Reverse 12+34:", "max_tokens": 2}'
    bad = b'{"prompt": "x", "junk": 1}'

    def some(count):
        for _ in range(count):
            assert status(server.ask_raw(request("/v1/completions", body))) == 200
            assert status(server.ask_raw(request("/v1/completions", bad))) == 400

    some(1000)
    before, threads, answered = resident(), threading.active_count(), server.counts.answered
    some(10_000)
    assert server.counts.answered == answered + 10_000
    until(lambda: not server.server.server_state.connections)
    assert resident() - before < 16 << 20
    assert threading.active_count() <= threads + 1
