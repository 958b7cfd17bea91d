"""The flags of the processes: what each takes, what holds without it, how a wrong one is refused.

`quire serve` hands most of its flags on to processes that it starts later. Both read this table, so
what a process would refuse is refused before anything is started, in the same words:

    --threads is 0; it must be at least 1

A flag stands under the name of its option, and has the same name in Python (`LLM(threads=2)`).
"""

from typing import Literal

from protos import blocks
from protos.flag import Flag, number, one_of, readable_file, size, text, whole
from protos.limits import MAX_DRAFT_TOKENS

_PORT = whole(0, 65535)

# Scheduler and worker.

MAX_NUM_SEQS = Flag(
    "max_num_seqs", "Sequences that run at once on one worker, at most.", "N", whole(1), 256
)
MAX_NUM_BATCHED_TOKENS = Flag(
    "max_num_batched_tokens",
    "Tokens computed in one step of one worker, at most.",
    "TOKENS",
    whole(1),
    2048,
)
METRICS_HOST = Flag(
    "metrics_host",
    "Address that /metrics is served on, to whoever reaches it: numbers, and no key is asked for.",
    "HOST",
    text,
    "127.0.0.1",
)
DRAIN_TIMEOUT: Flag[float] = Flag(
    "drain_timeout",
    "How long accepted requests may take to finish when told to end (of a scheduler: those of "
    "routers that end with it).",
    "SECONDS",
    number(0),
    30.0,
)

# Scheduler, and whoever dials it.

CLUSTER_TOKEN_FILE: Flag[str | None] = Flag(
    "cluster_token_file",
    "What scheduler, routers and workers know each other by: a token a line, any of them lets in, "
    "the first is said. Or one in QUIRE_CLUSTER_TOKEN.",
    "FILE",
    readable_file,
    None,
    "none; a scheduler that other machines reach must have it, or certificates",
)
TLS_CERT: Flag[str | None] = Flag(
    "tls_cert",
    "This process's certificate, for mutual TLS between scheduler, routers and workers; PEM.",
    "FILE",
    readable_file,
    None,
    "none",
)
TLS_KEY: Flag[str | None] = Flag(
    "tls_key", "The certificate's private key; PEM.", "FILE", readable_file, None, "none"
)
TLS_CA: Flag[str | None] = Flag(
    "tls_ca",
    "The authority whose certificates the other side must have; PEM.",
    "FILE",
    readable_file,
    None,
    "none",
)

# Scheduler.

ADMIN_LISTEN: Flag[str | None] = Flag(
    "admin_listen",
    "Where operators call (quire drain, quire cache reset): unix:PATH, for this user alone, or "
    "HOST:PORT, of any free port with 0. Whoever reaches a port may end the cell, unless the "
    "scheduler asks for a token or certificates.",
    "ADDR",
    text,
    None,
    "nowhere",
)
SCHEDULING_POLICY: Flag[Literal["fcfs", "priority"]] = Flag(
    "scheduling_policy",
    "Who is next: first come first served, or by priority with aging.",
    "fcfs|priority",
    one_of("fcfs", "priority"),
    "fcfs",
)
PRIORITY_AGING = Flag(
    "priority_aging",
    "With the policy `priority`: the wait that weighs as much as one step of priority.",
    "SECONDS",
    number(0.001),
    10.0,
)
WATERMARK = Flag(
    "watermark",
    "Share of KV blocks that admission leaves to running sequences, 0 to 0.99.",
    "SHARE",
    number(0, 0.99),
    0.01,
)
MAX_QUEUED = Flag(
    "max_queued", "Sequences that may wait; more are refused.", "N", whole(1), 100_000
)
MAX_QUEUED_TOKENS = Flag(
    "max_queued_tokens",
    "Tokens of prompts that may wait; more are refused.",
    "TOKENS",
    whole(1),
    10_000_000,
)
MAX_LOSSES = Flag(
    "max_losses",
    "Lost workers that one request may have been running on without progress since; then it is "
    "tried apart from others, and ends if a worker is lost with it alone.",
    "N",
    whole(1),
    2,
)


def _draft_tokens(text: str) -> str:
    if text in ("auto", "off"):
        return text
    try:
        return str(whole(1, MAX_DRAFT_TOKENS)(text))
    except ValueError as error:
        raise ValueError(f"auto, off or {error}") from None


SPECULATIVE_NGRAM = Flag(
    "speculative_ngram",
    "Tokens that a small step may suppose, looked up in the sequence's own text, and verify at "
    "once; less one for each token that it computes anyway. auto: as many as cost little.",
    "auto|off|N",
    _draft_tokens,
    "auto",
)
STEP_TIMEOUT = Flag(
    "step_timeout",
    "A worker whose step takes longer than this, and far longer than steps of its size, is given "
    "up and its sequences computed elsewhere. Once eight such steps were measured, 5 s take the "
    "place of this.",
    "SECONDS",
    number(0.1),
    60.0,
)
SCHEDULER_METRICS_PORT = Flag(
    "metrics_port", "Port of /metrics; 0 takes any free one.", "PORT", _PORT, 9401
)

# Worker.

MAX_MODEL_LEN: Flag[int | None] = Flag(
    "max_model_len",
    "Prompt and output tokens of a request together, at most.",
    "TOKENS",
    whole(1),
    None,
    "the model's limit",
)
BLOCK_SIZE: Flag[int | None] = Flag(
    "block_size",
    "Tokens per KV block.",
    "TOKENS",
    whole(1, 1024),
    None,
    f"{blocks.BLOCK_SIZE}",
)
NUM_BLOCKS: Flag[int | None] = Flag(
    "num_blocks",
    "KV blocks per worker, exactly; stands above --kv-cache-memory.",
    "N",
    whole(1),
    None,
    "what the memory gives",
)
KV_CACHE_MEMORY: Flag[int | None] = Flag(
    "kv_cache_memory",
    "Memory for KV per worker, like 2GiB.",
    "SIZE",
    size,
    None,
    "what full slots need, within a share of what is free",
)
WORKER_MAX_NUM_BATCHED_TOKENS: Flag[int | None] = Flag(
    "max_num_batched_tokens",
    "Tokens computed in one step of one worker, at most; every running sequence waits for a step's "
    "end.",
    "TOKENS",
    whole(1),
    None,
    "2048, and 256 where a CPU generates",
)
DTYPE = Flag(
    "dtype",
    "Number format of weights and KV: auto, float32, bfloat16 or float16.",
    "DTYPE",
    one_of("auto", "float32", "bfloat16", "float16"),
    "auto",
)
QUANTIZATION = Flag(
    "quantization",
    "What matrices are kept in: auto, what the checkpoint has; none, floats; int8 or int4, codes "
    "in groups of 32, on CPUs.",
    "auto|none|int8|int4",
    one_of("auto", "none", "int8", "int4"),
    "auto",
)
PACKED_CACHE = Flag(
    "packed_cache",
    "Whether the matrices as a CPU's native kernels read them are kept in a file of the cache, "
    "which all workers of the model map; else each packs its own.",
    "on|off",
    one_of("on", "off"),
    "on",
)
LOAD_FORMAT = Flag(
    "load_format",
    "Read the directory's weights, or make random ones (dummy, for benchmarks).",
    "auto|dummy",
    one_of("auto", "dummy"),
    "auto",
)
POOLING: Flag[str | None] = Flag(
    "pooling",
    "Which token's hidden state is a prompt's embedding, or their mean.",
    "last|mean|cls",
    one_of("last", "mean", "cls"),
    None,
    "what the model says; else last, and mean of an encoder",
)
DEVICE = Flag(
    "device",
    "Where the model runs; auto: on a GPU if there is one.",
    "auto|cpu|cuda",
    one_of("auto", "cpu", "cuda"),
    "auto",
)
CPU_BACKEND = Flag(
    "cpu_backend",
    "What computes on a CPU: Quire's own kernels (native) or torch; auto: native where they can.",
    "auto|native|torch",
    one_of("auto", "native", "torch"),
    "auto",
)
CPU_ISA = Flag(
    "cpu_isa",
    "Which instructions native kernels may use; auto: the best of this processor.",
    "auto|avx512vnni|avx512|avx2|neon|portable",
    one_of("auto", "avx512vnni", "avx512", "avx2", "neon", "portable"),
    "auto",
)
KV_CACHE_DTYPE = Flag(
    "kv_cache_dtype",
    "Number format of keys and values; auto: as --dtype, and float16 where a CPU computes with "
    "matrices in codes.",
    "auto|float32|float16|bfloat16",
    one_of("auto", "float32", "float16", "bfloat16"),
    "auto",
)
GPU_MEMORY_UTILIZATION = Flag(
    "gpu_memory_utilization",
    "Share of each GPU's memory that may be used, 0.05 to 1.",
    "SHARE",
    number(0.05, 1),
    0.9,
)
THREADS: Flag[int | None] = Flag(
    "threads",
    "Compute threads per worker, on a CPU.",
    "N",
    whole(1),
    None,
    "the physical cores it may use",
)
TENSOR_PARALLEL_SIZE = Flag(
    "tensor_parallel_size",
    "Ranks that share each worker's model, each with a device of its own.",
    "N",
    whole(1),
    1,
)
WORKER_METRICS_PORT = Flag(
    "metrics_port",
    "Port of /metrics, given once for each rank, or else for the first; 0 takes any free one.",
    "PORT",
    _PORT,
    9402,
)

# Router, and whoever loads a model.

API_KEY_FILE: Flag[str | None] = Flag(
    "api_key_file",
    "Keys of clients with their names, NAME KEY on each line, of which several may have one name; "
    "those of --api-key are called default, default-2 and so on. Or in QUIRE_API_KEYS, as a JSON "
    "object. Logs and metrics show names alone, and a name is its requests' tenant.",
    "FILE",
    readable_file,
    None,
    "none",
)
SSL_CERTFILE: Flag[str | None] = Flag(
    "ssl_certfile",
    "Certificate that HTTP and gRPC are served with, in PEM, with those between it and its "
    "authority.",
    "FILE",
    readable_file,
    None,
    "none: no TLS",
)
SSL_KEYFILE: Flag[str | None] = Flag(
    "ssl_keyfile",
    "Its private key, in PEM, without a password.",
    "FILE",
    readable_file,
    None,
    "in the file of the certificate",
)
SSL_CA_CERTS: Flag[str | None] = Flag(
    "ssl_ca_certs",
    "Clients must show a certificate of one of these authorities, in PEM.",
    "FILE",
    readable_file,
    None,
    "none is asked for",
)
SERVED_MODEL_NAME: Flag[str | None] = Flag(
    "served_model_name",
    "What clients put in `model`.",
    "NAME",
    text,
    None,
    "the model's own name",
)
HOST = Flag("host", "Address to answer on.", "HOST", text, "127.0.0.1")
ALLOWED_HOSTS: Flag[str | None] = Flag(
    "allowed_hosts",
    "Names with a dot that may be asked by, beside localhost and addresses, where no key is asked "
    "for; '*': any. Several as a JSON array or with commas between them.",
    "NAMES",
    text,
    None,
    "on loopback --host alone, else any",
)
ALLOWED_ORIGINS: Flag[str | None] = Flag(
    "allowed_origins",
    "Origins whose pages may ask from a browser, like https://app.example or '*'; several as a "
    "JSON array or with commas between them.",
    "ORIGINS",
    text,
    None,
    "no page may",
)
ALLOWED_METHODS: Flag[str | None] = Flag(
    "allowed_methods", "Methods that those pages may use.", "METHODS", text, None, "all"
)
ALLOWED_HEADERS: Flag[str | None] = Flag(
    "allowed_headers", "Headers that those pages may send.", "HEADERS", text, None, "all"
)
PORT = Flag("port", "Port of the OpenAI API (HTTP); 0 takes any free one.", "PORT", _PORT, 8000)
GRPC_PORT = Flag(
    "grpc_port", "Port of InferenceService (gRPC); 0 takes any free one.", "PORT", _PORT, 50050
)
ROUTER_METRICS_PORT: Flag[int | None] = Flag(
    "metrics_port",
    "A port on loopback where this process answers beside --port; for /metrics, /ready and /health "
    "of it alone where ports are shared. 0 takes any free one.",
    "PORT",
    _PORT,
    None,
    "none",
)
MAX_BODY_BYTES = Flag("max_body_bytes", "Largest HTTP body.", "BYTES", whole(1024), 8 * 1024 * 1024)
MAX_IN_FLIGHT = Flag(
    "max_in_flight",
    "Requests that the router holds at once, and a quarter more of tenants below an even share; "
    "others get 429.",
    "N",
    whole(1),
    1024,
)
SCHEDULER_TIMEOUT = Flag(
    "scheduler_timeout",
    "How long running requests wait for a lost scheduler or worker.",
    "SECONDS",
    number(0),
    120.0,
)
SEED: Flag[int | None] = Flag(
    "seed",
    "Requests that bring no seed get theirs from a generator seeded with this: the same again for "
    "the same order of arrival.",
    "N",
    whole(-(1 << 63), (1 << 64) - 1),
    None,
    "none: they are random",
)
MAX_STORED_BYTES = Flag(
    "max_stored_bytes",
    "Memory for /v1/responses that are kept for `previous_response_id`; the oldest go first. 0 "
    "keeps none: with routers that share a port it must be 0, and is.",
    "BYTES",
    whole(0),
    64 * 1024 * 1024,
)
RESPONSE_TTL = Flag(
    "response_ttl", "How long such a response is kept.", "SECONDS", number(0), 24 * 3600.0
)

# The stack's own.

REPLICAS = Flag("replicas", "Workers, each with the whole model.", "N", whole(1), 1)
ROUTER_PROCESSES = Flag(
    "router_processes",
    "Routers that share --port and --grpc-port, for more than a core serves. Several keep no "
    "/v1/responses for `previous_response_id`.",
    "N",
    whole(1),
    1,
)
STACK_PORT = Flag("port", "Port of the OpenAI API (HTTP).", "PORT", whole(1, 65535), 8000)
STACK_GRPC_PORT = Flag(
    "grpc_port", "Port of InferenceService (gRPC).", "PORT", whole(1, 65535), 50050
)
HANG_TIMEOUT: Flag[float] = Flag(
    "hang_timeout",
    "A scheduler or router that does not answer its health check for so long is killed and started "
    "again, as is any process that is stopped for some seconds; 0: never.",
    "SECONDS",
    number(0),
    30.0,
)
STACK_METRICS_PORT: Flag[int | None] = Flag(
    "metrics_port",
    "Port of the scheduler's /metrics; the workers take the ones after it. The router's is at "
    "--port.",
    "PORT",
    whole(1, 65535),
    None,
    "free ones",
)
