"""Kafka broker as a process: librdkafka's mock cluster, by its C interface.

It prints its address. Then it reads commands, and prints ``ok`` after each:

    topic NAME PARTITIONS      create a topic
    fail KEY CODE TIMES        answer requests of a kind with an error
    lose NAME CODE             answer all requests for a topic with an error; 0 means none
    leader NAME PARTITION ID   make a broker the leader of a partition; -1 means none
    slow MILLISECONDS          delay the answer to each request
    down, up                   close the port; open it again with all stored records
"""

from __future__ import annotations

import ctypes
import sys

_PRODUCER = 0
_BROKER = 1


def main() -> None:
    lib = ctypes.CDLL("librdkafka.so.1")
    for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_mock_cluster_new"):
        getattr(lib, name).restype = ctypes.c_void_p
    lib.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    error = ctypes.create_string_buffer(512)
    handle = ctypes.c_void_p(
        lib.rd_kafka_new(_PRODUCER, ctypes.c_void_p(lib.rd_kafka_conf_new()), error, len(error))
    )
    assert handle, error.value
    cluster = ctypes.c_void_p(lib.rd_kafka_mock_cluster_new(handle, 1))
    _print(lib.rd_kafka_mock_cluster_bootstraps(cluster).decode())
    for line in sys.stdin:
        _do(lib, cluster, line.split())
        _print("ok")


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _do(lib: ctypes.CDLL, cluster: ctypes.c_void_p, words: list[str]) -> None:
    match words:
        case ["topic", name, partitions]:
            result = lib.rd_kafka_mock_topic_create(cluster, name.encode(), int(partitions), 1)
            assert result == 0, result
        case ["fail", key, code, times]:
            lib.rd_kafka_mock_push_request_errors_array(
                cluster,
                ctypes.c_int16(int(key)),
                ctypes.c_size_t(int(times)),
                (ctypes.c_int * int(times))(*[int(code)] * int(times)),
            )
        case ["lose", name, code]:
            lib.rd_kafka_mock_topic_set_error(cluster, name.encode(), int(code))
        case ["leader", name, partition, broker]:
            lib.rd_kafka_mock_partition_set_leader(
                cluster, name.encode(), int(partition), int(broker)
            )
        case ["slow", milliseconds]:
            lib.rd_kafka_mock_broker_set_rtt(cluster, _BROKER, int(milliseconds))
        case ["down"]:
            lib.rd_kafka_mock_broker_set_down(cluster, _BROKER)
        case ["up"]:
            lib.rd_kafka_mock_broker_set_up(cluster, _BROKER)
        case _:
            raise ValueError(words)


if __name__ == "__main__":
    main()
