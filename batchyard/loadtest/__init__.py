"""`batchyard bench`: load tests for users, against any server with OpenAI's streaming API.

lengths, prompts, arrivals        what is drawn at random, the same for the same seed
synthetic, datasets, traces       workloads: sessions of one request or of several turns
calls                             a session's requests as bytes, ready to be sent
client, answers                   HTTP/1.1 that notes when each piece came; what the pieces say
runner, lag                       closed and open loop; whether the client itself was late
outcomes, statistics, results     what came of each request; percentiles, goodput; the JSON that is kept
sweep, measuring                  several rates or concurrencies, and the knee among them
table, charts, page, plots        a terminal, SVG, one HTML page, PNG
comparison                        two results beside each other, with confidence intervals
tuning, serving                   `batchyard serve` under the user's load, by setting
"""
