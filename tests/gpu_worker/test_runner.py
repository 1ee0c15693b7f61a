"""Steps through a real model: against transformers, and against themselves run otherwise."""

import pytest
import torch
from transformers import LlamaForCausalLM

from batchyard.errors import ProtocolError
from protos.packing import unpack_f32, unpack_i32
from tests.gpu_worker.helpers import (
    HandScheduler,
    Job,
    batch,
    greedy,
    load_tiny,
    make_runner,
    new_row,
    random_prompts,
    run_step,
    sampled_of,
)

LENGTHS = (23, 1, 40, 6, 17, 9, 31, 12)


def make_jobs(max_tokens=12, **params):
    return [Job(prompt, max_tokens + i % 3, params) for i, prompt in enumerate(random_prompts(*LENGTHS))]


@pytest.mark.parametrize("in_flight", [1, 2, 4])
def test_rows_that_come_and_go_say_what_transformers_say(runner, tiny_llama, in_flight):
    jobs = make_jobs()
    answers = HandScheduler(runner, in_flight=in_flight).run(jobs)
    assert answers == [greedy(tiny_llama[1], job.prompt, job.max_tokens) for job in jobs]
    assert len({tuple(answer[:8]) for answer in answers}) == len(jobs), "the reference model says one thing"
    runner.execute(batch(runner.rows.last_step + 1, freed=runner.rows.active.nonzero()[0].tolist()), 0)
    assert runner.rows.num_active == runner.rows.num_held_blocks == 0


def test_chunks_and_batches_do_not_change_random_samples(tiny_model):
    params = {"temperature": 1.5, "top_p": 0.9, "top_k": 40, "min_p": 0.001, "repetition_penalty": 1.2}

    def answers(**how):
        jobs = make_jobs()
        for i, job in enumerate(jobs):
            job.params = {**params, "seed": i}
        max_rows = how.pop("max_rows")
        return HandScheduler(make_runner(tiny_model, max_rows=max_rows), **how).run(jobs)

    together = answers(max_rows=4, chunk=5, in_flight=2)
    alone = answers(max_rows=1, chunk=50, in_flight=1)
    assert together == alone
    assert len({tuple(answer) for answer in together}) == len(LENGTHS)


def test_an_answer_replayed_in_the_prompt_goes_on_as_before(runner):
    params = {"temperature": 1.0, "seed": 7, "presence_penalty": 0.5, "frequency_penalty": 0.3}
    (prompt,) = random_prompts(9)
    (whole,) = HandScheduler(runner).run([Job(prompt, 12, params)])

    runner.reset()
    so_far = prompt + whole[:5]
    # prompt_len tells which tokens the penalties are for.
    entry = new_row(0, so_far, range(8), prompt_len=len(prompt), **params)
    rest = [sampled_of(run_step(runner, batch(1, [entry], chunks=[(0, len(so_far))])))[0]]
    rest += [sampled_of(run_step(runner, batch(step)))[0] for step in range(2, 8)]
    assert rest == whole[5:]


def test_cached_blocks_are_shared(runner, tiny_llama):
    prompt, other = random_prompts(16, 5)
    run_step(runner, batch(1, [new_row(0, prompt, [3, 4, 5])], chunks=[(0, 16)]))
    longer = prompt + other
    result = run_step(runner, batch(2, [new_row(1, longer, [3, 4, 9], computed=16)], chunks=[(1, 5)]))
    assert sampled_of(result)[1] == greedy(tiny_llama[1], longer, 1)[0]
    assert result.num_tokens == 6
    assert runner.rows.block_generations[[3, 4, 5, 9, 10]].tolist() == [1, 1, 1, 1, 0]


def test_a_row_reads_what_another_computes_in_the_same_step(runner, tiny_llama):
    prompt, other = random_prompts(16, 5)
    longer = prompt + other
    entries = [
        new_row(0, longer, [3, 4, 9], computed=16),  # before the one it reads from, and behind it
        new_row(1, prompt, [3, 4, 5]),
        new_row(2, [*prompt, 7], [3, 4, 10], computed=16),
    ]
    result = run_step(runner, batch(1, entries, chunks=[(0, 5), (1, 16), (2, 1)]))
    expected = [greedy(tiny_llama[1], tokens, 1)[0] for tokens in (longer, prompt, [*prompt, 7])]
    assert sampled_of(result) == dict(enumerate(expected))
    assert result.num_tokens == 22


def test_a_step_without_rows_is_answered(runner):
    empty = run_step(runner, batch(1))
    assert (empty.step, empty.num_tokens, empty.rows, empty.tokens) == (1, 0, b"", b"")
    entered = run_step(runner, batch(2, [new_row(0, [5, 6], [0])]))
    assert entered.num_tokens == 0
    assert entered.rows == b""
    assert list(sampled_of(run_step(runner, batch(3, chunks=[(0, 2)])))) == [0]
    assert sampled_of(run_step(runner, batch(4, freed=[0]))) == {}


def test_a_refused_batch_changes_nothing(runner, tiny_llama):
    (prompt,) = random_prompts(10)
    run_step(runner, batch(1, [new_row(0, prompt, [0, 1])], chunks=[(0, 4)]))
    with pytest.raises(ProtocolError, match="step 2: chunk row 3 is unknown"):
        run_step(runner, batch(2, [new_row(1, [1], [5])], grown=[(0, 7)], chunks=[(3, 1)]))
    result = run_step(runner, batch(2, chunks=[(0, 6)]))
    assert sampled_of(result) == {0: greedy(tiny_llama[1], prompt, 1)[0]}
    assert runner.rows.num_held_blocks == 2


def test_the_last_token_of_the_longest_sequence(tiny_model, tiny_llama):
    runner = make_runner(tiny_model, max_model_len=16, num_blocks=2)
    (prompt,) = random_prompts(15)
    first = run_step(runner, batch(1, [new_row(0, prompt, [0, 1])], chunks=[(0, 15)]))
    second = run_step(runner, batch(2))
    assert [sampled_of(first)[0], sampled_of(second)[0]] == greedy(tiny_llama[1], prompt, 2)
    with pytest.raises(ProtocolError, match="row 0 decodes beyond max_model_len 16"):
        run_step(runner, batch(3))


def test_times_and_counts_are_filled_in(runner):
    result = run_step(runner, batch(1, [new_row(0, [1, 2, 3], [0])], chunks=[(0, 3)]))
    assert result.num_tokens == 3
    assert result.forward_us > 0
    assert result.sample_us > 0
    assert result.queue_us >= 0


def log_softmax(reference: LlamaForCausalLM, tokens):
    with torch.inference_mode():
        return reference(torch.tensor([tokens])).logits[0].log_softmax(-1)


def test_logprobs_are_the_models_own(runner, tiny_llama):
    prompt, other = random_prompts(9, 4)
    # Temperature and bias change what is sampled, not what is reported.
    entries = [
        new_row(0, prompt, [0, 1], temperature=1.0, seed=3, bias={17: 50.0}, logprobs=3),
        new_row(1, other, [2]),
        new_row(2, other, [3], logprobs=0),
    ]
    result = run_step(runner, batch(1, entries, chunks=[(0, 9), (1, 4), (2, 4)]))
    tokens = sampled_of(result)
    assert tokens[0] == 17
    assert [item.row for item in result.logprobs] == [0, 2]
    with_top, without = (item.logprobs for item in result.logprobs)
    expected = log_softmax(tiny_llama[1], prompt)[-1]
    assert with_top.logprob == pytest.approx(expected[17].item(), abs=1e-4)
    assert with_top.rank == (expected > expected[17]).sum() + 1
    best = expected.topk(3)
    assert unpack_i32(with_top.top_ids).tolist() == best.indices.tolist()
    assert unpack_f32(with_top.top_logprobs).tolist() == pytest.approx(best.values.tolist(), abs=1e-4)
    expected = log_softmax(tiny_llama[1], other)[-1]
    assert without.logprob == pytest.approx(expected[tokens[2]].item(), abs=1e-4)
    assert (without.rank, without.top_ids) == (1, b"")


def test_prompt_logprobs_come_with_the_chunks(runner, tiny_llama):
    prompt, other = random_prompts(11, 4)
    # The last two tokens are an answer, of which prompt_logprobs say nothing.
    entry = new_row(0, prompt, [0, 1], prompt_len=9, prompt_logprobs=2)
    results = [
        run_step(runner, batch(1, [entry], chunks=[(0, 4)])),
        run_step(runner, batch(2, [new_row(1, other, [2])], chunks=[(1, 4), (0, 5)])),
        run_step(runner, batch(3, chunks=[(0, 2)])),
    ]
    parts = [part for result in results for part in result.prompt_logprobs]
    assert [(part.row, part.start, len(part.positions)) for part in parts] == [(0, 1, 4), (0, 5, 4)]
    expected = log_softmax(tiny_llama[1], prompt)
    for position, found in enumerate((p for part in parts for p in part.positions), start=1):
        row = expected[position - 1]
        assert found.logprob == pytest.approx(row[prompt[position]].item(), abs=1e-4)
        assert found.rank == (row > row[prompt[position]]).sum() + 1
        assert unpack_i32(found.top_ids).tolist() == row.topk(2).indices.tolist()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu_nothing_waits_and_the_answers_are_the_same(tiny_llama):
    from gpu_worker.kernels.triton_ops import TritonOps

    device = torch.device("cuda")
    runner = make_runner(load_tiny(tiny_llama[0], TritonOps.for_device(device), "cuda"))
    HandScheduler(runner).run(make_jobs(temperature=1.0, top_p=0.9, logprobs=2))  # compiles everything
    runner.reset()

    class Watched(HandScheduler):
        def launch(self):
            torch.cuda.set_sync_debug_mode("error")
            super().launch()
            torch.cuda.set_sync_debug_mode("default")

    jobs = make_jobs()
    answers = Watched(runner, in_flight=3).run(jobs)
    assert answers == [greedy(tiny_llama[1], job.prompt, job.max_tokens) for job in jobs]
    runner.reset()
    Watched(runner).run(make_jobs(temperature=1.0, top_p=0.9, top_k=5, repetition_penalty=1.1, logprobs=2))
