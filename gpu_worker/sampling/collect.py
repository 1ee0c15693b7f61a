"""From the sampling table to what one step's rows ask for, on the host."""

import numpy as np
import numpy.typing as npt

from gpu_worker.sampling.batch import Bias, LogprobRows, Penalties, Picks, SamplingBatch
from gpu_worker.sampling.params import SamplingTable, Wants
from gpu_worker.sampling.rng import stream_keys
from gpu_worker.staging import HostArray

Ints = npt.NDArray[np.int64]


def collect(
    table: SamplingTable, rows: Ints, prompt_lens: Ints, known: Ints, vocab_size: int
) -> SamplingBatch[HostArray]:
    """What `rows` [n] ask for when each samples the token at position `known` [n]."""
    wants = table.wants[rows]
    asked = Wants(int(np.bitwise_or.reduce(wants, initial=0)))
    return SamplingBatch(
        bias=_bias(table, rows, _where(wants, Wants.BIAS), vocab_size) if Wants.BIAS in asked else None,
        banned=_banned(table, rows, known - prompt_lens, _where(wants, Wants.MIN_TOKENS), vocab_size)
        if Wants.MIN_TOKENS in asked
        else None,
        penalties=_penalties(table, rows, prompt_lens, known, _where(wants, Wants.PENALTIES))
        if Wants.PENALTIES in asked
        else None,
        picks=_picks(table, rows, known, wants, asked) if Wants.RANDOM in asked else None,
        logprobs=_logprobs(table, rows, _where(wants, Wants.LOGPROBS)) if Wants.LOGPROBS in asked else None,
    )


def _where(wants: Ints, flag: Wants) -> Ints:
    return np.flatnonzero(wants & flag)


def _bias(table: SamplingTable, rows: Ints, index: Ints, vocab_size: int) -> Bias[HostArray]:
    biases = [table.biases[row] for row in rows[index]]
    places = [i * vocab_size + ids.astype(np.int64) for i, (ids, _) in zip(index, biases, strict=True)]
    return Bias(np.concatenate(places), np.concatenate([values for _, values in biases]))


def _banned(
    table: SamplingTable, rows: Ints, answered: Ints, index: Ints, vocab_size: int
) -> HostArray | None:
    """The stop tokens of rows whose answer is still too short."""
    index = index[answered[index] < table.min_tokens[rows[index]]]
    if not len(index):
        return None
    return np.concatenate([i * vocab_size + table.stop_ids[rows[i]].astype(np.int64) for i in index])


def _penalties(
    table: SamplingTable, rows: Ints, prompt_lens: Ints, known: Ints, index: Ints
) -> Penalties[HostArray]:
    chosen = rows[index]
    return Penalties(
        index=index,
        rows=chosen,
        prompt_lens=prompt_lens[index],
        known=known[index],
        repetition=table.repetition_penalty[chosen],
        presence=table.presence_penalty[chosen],
        frequency=table.frequency_penalty[chosen],
        width=int(known[index].max()),
    )


def _picks(table: SamplingTable, rows: Ints, known: Ints, wants: Ints, asked: Wants) -> Picks[HostArray]:
    log_min_p = np.full(len(rows), -np.inf, np.float32)
    min_p = _where(wants, Wants.MIN_P)
    log_min_p[min_p] = np.log(table.min_p[rows[min_p]])
    return Picks(
        temperature=np.where(wants & Wants.RANDOM, table.temperature[rows], np.float32(0)),
        keys=stream_keys(table.seed[rows], known),
        log_min_p=log_min_p,
        top_k=np.where(wants & Wants.TOP_K, table.top_k[rows], 0).astype(np.int32),
        top_p=np.where(wants & Wants.TOP_P, table.top_p[rows], np.float32(1)),
        filtered=bool(asked & (Wants.MIN_P | Wants.TOP_K | Wants.TOP_P)),
    )


def _logprobs(table: SamplingTable, rows: Ints, index: Ints) -> LogprobRows[HostArray]:
    return LogprobRows(index, int(table.logprobs[rows[index]].max()))
