"""What all of Batchyard's processes share: configuration, errors, logging, telemetry, gRPC, the command."""

import os

# gRPC's C core prints its own errors on standard error; ours say the same in one line. Read when grpc loads.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
