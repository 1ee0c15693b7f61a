"""How many prompt tokens a step takes while others decode.

A step lasts for all of its rows: who decodes waits for its next token as long as the step's prompts take. On
an H200 a prompt token of 8 billion parameters takes 25 µs, so a prompt of 1,000 tokens computed at once holds
everybody up for as long as four steps of decoding. Spread over three steps it ends hardly later, and nobody
notices.

More than three calm steps' worth, though, be it one long prompt or many, is computed at full speed: every
step reads all weights again, so those who wait for their first token would pay more for it than those who
decode would gain. Long prompts are rare where answers are read as they come; where they are not rare, or
many prompts wait, throughput is what counts. The rule knows no phases and remembers nothing.
"""

_CALM_STEPS = 3


def prompt_budget(budget: int, decodes: int, backlog: int, calm: int) -> int:
    """The most prompt tokens in the next step, 0 only where `decodes` take all of it.

    budget    tokens that fit into the step
    decodes   rows that decode in it, a token each; at most `budget`
    backlog   prompt tokens that wait to be computed on this worker
    calm      prompt tokens that may always join rows that decode; 0 for no such limit
    """
    left = budget - decodes
    if not (calm and decodes) or backlog > _CALM_STEPS * calm:
        return left
    return min(left, calm)
