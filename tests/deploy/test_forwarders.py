"""Tests of the forwarders' recipes against their documentation and ocsf-nft's output."""

from __future__ import annotations

import fnmatch
import re
import tomllib
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson
import pytest
import yaml

from ocsf_nft import config
from ocsf_nft.config.sinks.local import FileSink
from ocsf_nft.delivery.sinks.otlp import _SEVERITIES
from ocsf_nft.ocsf.enums import Severity
from tests.delivery.sample_events import messages, packets
from tests.deploy.manifests import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ocsf_nft.config.sinks.base import SinkTable

_FOLDER = ROOT / "deploy/forwarders"
_README = (_FOLDER / "README.md").read_text()
_VECTOR, _FLUENT_BIT, _COLLECTOR = (
    yaml.safe_load((_FOLDER / f"{name}.yaml").read_text())
    for name in ("vector", "fluent-bit", "otelcol")
)
_UNITS = {"": 1, "k": 1 << 10, "kb": 1 << 10, "kib": 1 << 10, "m": 1 << 20, "mib": 1 << 20}

#: Keys by component, from the documentation: Vector's reference of components, Fluent Bit's
#: manual, and the README and source of each component of the Collector.
_VECTOR_KEYS = {
    "sources.http_server": {
        "acknowledgements", "address", "auth", "decoding", "framing", "headers", "host_key",
        "keepalive", "method", "path", "path_key", "query_parameters", "response_code",
        "strict_path", "tls",
    },
    "sources.file": {
        "acknowledgements", "data_dir", "encoding", "exclude", "file_key", "fingerprint",
        "glob_minimum_cooldown_ms", "host_key", "ignore_checkpoints", "ignore_not_found",
        "ignore_older_secs", "include", "internal_metrics", "line_delimiter", "max_line_bytes",
        "max_read_bytes", "multiline", "offset_key", "oldest_first", "read_from",
        "remove_after_secs", "rotate_wait_secs",
    },
    "sources.socket": {
        "address", "connection_limit", "decoding", "framing", "host_key", "keepalive",
        "max_length", "mode", "path", "port_key", "receive_buffer_bytes", "shutdown_timeout_secs",
        "socket_file_mode", "tls",
    },
    "transforms.remap": {
        "drop_on_abort", "drop_on_error", "file", "files", "metric_tag_values", "reroute_dropped",
        "source", "timezone",
    },
    "sinks.elasticsearch": {
        "acknowledgements", "api_version", "auth", "batch", "buffer", "bulk", "compression",
        "data_stream", "encoding", "endpoints", "id_key", "metrics", "mode", "pipeline", "query",
        "request", "request_retry_partial", "tls",
    },
    "sinks.file": {
        "acknowledgements", "compression", "encoding", "framing", "idle_timeout_secs",
        "internal_metrics", "path", "timezone",
    },
}  # fmt: skip
_FLUENT_BIT_KEYS = {
    "service": {
        "flush", "grace", "daemon", "log_level", "log_file", "http_server", "storage.path",
        "storage.sync", "storage.checksum", "storage.max_chunks_up", "storage.metrics",
        "storage.backlog.mem_limit",
    },
    "inputs.http": {
        "add_remote_addr", "buffer_chunk_size", "buffer_max_size", "http2", "listen", "port",
        "success_header", "successful_response_code", "tag_key", "threaded",
    },
    "inputs.tail": {
        "buffer_chunk_size", "buffer_max_size", "path", "path_key", "exclude_path", "offset_key",
        "read_from_head", "refresh_interval", "rotate_wait", "ignore_older", "skip_long_lines",
        "skip_empty_lines", "db", "db.sync", "db.locking", "db.journal_mode",
        "db.compare_filename", "mem_buf_limit", "exit_on_eof", "parser", "key",
        "inotify_watcher", "tag_regex", "static_batch_size",
    },
    "inputs.unix_socket": {
        "socket_path", "socket_mode", "socket_permissions", "format", "separator", "chunk_size",
        "buffer_size",
    },
    "outputs.opensearch": {
        "host", "port", "path", "buffer_size", "pipeline", "http_user", "http_passwd", "index",
        "type", "logstash_format", "time_key", "generate_id", "id_key", "write_operation",
        "replace_dots", "trace_output", "trace_error", "suppress_type_name", "workers",
    },
}  # fmt: skip
#: Keys of every input and output of Fluent Bit.
_FLUENT_BIT_COMMON = {
    "name", "tag", "match", "alias", "tls", "tls.verify", "tls.ca_file", "retry_limit",
    "storage.type", "storage.pause_on_chunks_overlimit", "storage.total_limit_size",
}  # fmt: skip
_COLLECTOR_KEYS = {
    "extensions.file_storage": {
        "directory", "timeout", "fsync", "create_directory", "directory_permissions", "compaction",
    },
    "receivers.otlp": {"protocols"},
    "receivers.filelog": {
        "include", "exclude", "exclude_older_than", "start_at", "multiline", "force_flush_period",
        "encoding", "preserve_leading_whitespaces", "preserve_trailing_whitespaces",
        "include_file_name", "include_file_path", "include_file_name_resolved",
        "include_file_path_resolved", "include_file_owner_name", "include_file_owner_group_name",
        "include_file_record_number", "poll_interval", "fingerprint_size", "initial_buffer_size",
        "max_log_size", "max_concurrent_files", "max_batches", "delete_after_read",
        "acquire_fs_lock", "attributes", "resource", "operators", "storage", "header",
        "retry_on_failure", "ordering_criteria", "compression",
    },
    "receivers.syslog": {
        "tcp", "udp", "protocol", "location", "enable_octet_counting", "allow_skip_pri_header",
        "non_transparent_framing_trailer", "attributes", "resource", "operators",
        "retry_on_failure",
    },
    "exporters.otlphttp": {
        "endpoint", "logs_endpoint", "tls", "headers", "timeout", "compression", "encoding",
        "retry_on_failure", "sending_queue",
    },
}  # fmt: skip


def _blocks() -> list[str]:
    return re.findall(r"```toml\n(.*?)```", _README, flags=re.DOTALL)


def _tables() -> list[SinkTable]:
    """Return the sinks of ocsf-nft in the README."""
    found = [tomllib.loads(block) for block in _blocks()]
    return [config.parse(each | {"host_log": "kmsg"}, where="README").sinks[0] for each in found]


def _table(name: str) -> Any:
    return next(table for table in _tables() if name in table.called)


def _components() -> Iterator[tuple[str, set[str], set[str]]]:
    """Yield each component of the files, with its keys and the documented keys."""
    for kind in ("sources", "transforms", "sinks"):
        for found in _VECTOR[kind].values():
            known = _VECTOR_KEYS[f"{kind}.{found['type']}"] | {"type", "inputs"}
            yield f"vector {kind} {found['type']}", set(found), known
    yield "fluent-bit service", set(_FLUENT_BIT["service"]), _FLUENT_BIT_KEYS["service"]
    for kind in ("inputs", "outputs"):
        for found in _FLUENT_BIT["pipeline"][kind]:
            known = _FLUENT_BIT_KEYS[f"{kind}.{found['name']}"] | _FLUENT_BIT_COMMON
            yield f"fluent-bit {kind} {found['name']}", set(found), known
    for kind in ("extensions", "receivers", "exporters"):
        for name, found in _COLLECTOR[kind].items():
            yield f"otelcol {kind} {name}", set(found), _COLLECTOR_KEYS[f"{kind}.{name}"]


@pytest.mark.parametrize(("name", "keys", "known"), list(_components()))
def test_component_has_only_documented_keys(name: str, keys: set[str], known: set[str]) -> None:
    assert keys <= known, name


def test_inputs_and_outputs_of_vector_match() -> None:
    outputs = set(_VECTOR["sources"])
    for name, found in _VECTOR["transforms"].items():
        outputs |= {name, f"{name}.dropped"} if found["reroute_dropped"] else {name}
    used: set[str] = set()
    for found in (*_VECTOR["transforms"].values(), *_VECTOR["sinks"].values()):
        assert set(found["inputs"]) <= outputs
        used |= set(found["inputs"])
    assert used == outputs


def test_each_input_of_fluent_bit_has_an_output_and_a_defined_parser() -> None:
    pipeline = _FLUENT_BIT["pipeline"]
    matched = {found["match"] for found in pipeline["outputs"]}
    assert {found["tag"] for found in pipeline["inputs"]} == matched
    parsers = {found["name"] for found in _FLUENT_BIT["parsers"]}
    assert {found["parser"] for found in pipeline["inputs"] if "parser" in found} == parsers


def test_pipeline_of_the_collector_uses_all_its_components() -> None:
    service = _COLLECTOR["service"]
    (pipeline,) = service["pipelines"].values()
    assert set(pipeline["receivers"]) == set(_COLLECTOR["receivers"])
    assert set(pipeline["exporters"]) == set(_COLLECTOR["exporters"])
    assert set(service["extensions"]) == set(_COLLECTOR["extensions"])
    stored = (
        _COLLECTOR["receivers"]["filelog"]["storage"],
        _COLLECTOR["exporters"]["otlphttp"]["sending_queue"]["storage"],
    )
    assert set(stored) == set(_COLLECTOR["extensions"])


def test_severities_of_the_collector_match_our_otlp_sink() -> None:
    (parser, _) = _COLLECTOR["receivers"]["filelog"]["operators"]
    mapping = parser["severity"]["mapping"]
    numbers = {"info": 9, "info2": 10, "warn": 13, "error": 17, "error2": 18}
    ours = {each.name.title(): _SEVERITIES[each] for each in Severity if each in _SEVERITIES}
    assert {text: numbers[level] for level, text in mapping.items()} == ours


def test_each_sink_of_the_readme_sends_to_an_address_of_a_forwarder() -> None:
    assert len(_tables()) == 6
    vector = _VECTOR["sources"]["by_http"]
    url = urlsplit(_table("vector").url)
    assert (url.netloc, url.path) == (vector["address"], vector["path"])
    assert (_table("vector").format, vector["framing"]["method"]) == ("ndjson", "newline_delimited")
    by_http, _, by_socket = _FLUENT_BIT["pipeline"]["inputs"]
    url = urlsplit(_table("fluent-bit").url)
    assert (url.hostname, url.port) == (by_http["listen"], by_http["port"])
    assert url.path == f"/{by_http['tag']}"
    otlp = urlsplit(_table("otelcol").url)
    assert otlp.netloc == _COLLECTOR["receivers"]["otlp"]["protocols"]["http"]["endpoint"]
    syslog = _table("syslog")
    listens = _COLLECTOR["receivers"]["syslog"]["tcp"]["listen_address"]
    assert f"{syslog.host}:{syslog.port}" == listens
    assert str(_table("unix:").path) == _VECTOR["sources"]["by_socket"]["path"]
    assert by_socket["socket_path"].startswith("/run/fluent-bit/")


def _patterns() -> dict[str, list[str]]:
    """Return the file patterns of each forwarder."""
    tail = _FLUENT_BIT["pipeline"]["inputs"][1]
    return {
        "vector": _VECTOR["sources"]["by_file"]["include"],
        "fluent-bit": tail["path"].split(","),
        "otelcol": _COLLECTOR["receivers"]["filelog"]["include"],
    }


@pytest.mark.parametrize("forwarder", ["vector", "fluent-bit", "otelcol"])
async def test_followed_files_have_each_event_once_and_are_uncompressed(
    forwarder: str, tmp_path: Path
) -> None:
    table = _table("/var/log")
    patterns = _patterns()[forwarder]
    assert patterns[0] == str(table.path)
    batch = packets(60)
    (tmp_path / "ocsf-nft").mkdir()
    path = tmp_path / "ocsf-nft" / table.path.name
    # As after compression by another program, and after a kill.
    path.with_name(".events-20200101T000000.000000Z.jsonl.gz.part").write_bytes(b"half")
    path.with_name("events-20200101T000000.000000Z.jsonl.gz").write_bytes(b"whole")
    rotating = FileSink(path=path, rotate_bytes=20_000, keep_files=table.keep_files)
    async with rotating.sink() as sink:
        for start in range(0, len(batch), 4):
            await sink.deliver(batch[start : start + 4])
    names = [pattern.rpartition("/")[2] for pattern in patterns]
    followed = [
        found
        for found in path.parent.iterdir()
        if any(fnmatch.fnmatchcase(found.name, name) for name in names)
    ]
    assert len(followed) > 5
    lines = [line for found in followed for line in found.read_bytes().splitlines()]
    assert sorted(lines) == sorted(each.line for each in batch)


def test_fingerprint_of_a_file_covers_the_identity_of_its_first_event() -> None:
    size = _bytes(_COLLECTOR["receivers"]["filelog"]["fingerprint_size"])
    first = {each.line[:size] for each in packets(50)}
    assert len(first) == 50


def test_largest_event_fits_into_each_line_limit() -> None:
    largest = max(len(each.line) for each in messages("1.8.0"))
    tail = _FLUENT_BIT["pipeline"]["inputs"][1]
    for limit in (
        _VECTOR["sources"]["by_file"]["max_line_bytes"],
        _bytes(tail["buffer_max_size"]),
        _FLUENT_BIT["pipeline"]["inputs"][2]["buffer_size"] * 1024,
        _bytes(_COLLECTOR["receivers"]["filelog"]["max_log_size"]),
        _table("syslog").max_bytes - 200,  # the header before the event
    ):
        assert largest < limit
    # A whole batch of the sink is one request and must fit too.
    http = _FLUENT_BIT["pipeline"]["inputs"][0]
    table = _table("fluent-bit")
    assert table.batch_bytes + largest + table.batch_events < _bytes(http["buffer_max_size"])


def test_rotated_files_are_not_compressed() -> None:
    assert not _table("/var/log").compress


def test_events_have_the_attributes_that_the_recipes_use() -> None:
    for each in messages("1.8.0"):
        event = orjson.loads(each.line)
        assert event["class_uid"]
        assert event["metadata"]["uid"]
        assert isinstance(event["time"], int)
        assert event["severity"] in {"Informational", "Low", "Medium", "High", "Critical"}
        assert not event.keys() & {"source_type", "path", "timestamp", "host"}


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+)([a-z]*)", text.lower())
    assert found is not None
    return int(found[1]) * _UNITS[found[2]]
