"""Bodies: by every way in, the deepest payloads, numbers and texts as they were sent, and words that say what to do."""

import json

import msgspec
import pytest

from jobpipe.handlers.registry import Handler
from jobpipe.job import DEEPEST
from jobpipe.store.sqlite import open_sqlite
from tests.api.client import open_door

NDJSON = {"Content-Type": "application/x-ndjson"}
BOM = b"\xef\xbb\xbf"

FLAT = b"1"

A_DURATION = 'expected a number of seconds from 0 to 315360000 (ten years) or a duration such as "90s", "5m" or "1h30m"'


def deep(bottom, levels=DEEPEST, *, tables=False):
    """A payload that nests so many levels."""
    opening, closing = (b'{"a":', b"}") if tables else (b"[", b"]")
    return opening * levels + bottom + closing * levels


async def by_enqueue(door, body):
    answer = await door.post("/enqueue", content=body)
    return answer.status_code, answer.json()


async def by_array(door, body):
    answer = await door.post("/enqueue/bulk", content=b"[" + body + b"]")
    return answer.status_code, answer.json()


async def by_line(door, body):
    answer = await door.post("/enqueue/bulk", content=body + b"\n", headers=NDJSON)
    (told,) = [json.loads(line) for line in answer.text.splitlines()]
    return told.get("status") if isinstance(told.get("status"), int) else 202, told


WAYS = [by_enqueue, by_array, by_line]


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__)
def way(request):
    """A way in: sends one job, and returns its status and what was answered."""
    return request.param


def places(answer):
    """The places of the faults, without that of the job in an array."""
    return [fault["pointer"].removeprefix("/0") for fault in answer["faults"]]


# The deepest payloads


@pytest.mark.parametrize("tables", [False, True])
async def test_the_deepest_payloads_are_compared(either_door, way, tables):
    """The same is the same job; what differs at the very bottom is another one."""
    bodies = [
        b'{"id":"a","delay":60,"payload":%b}' % deep(bottom, tables=tables)
        for bottom in (b"1", b" 1", b"2", b"true", b"null")
    ]

    first, again, *others = [(await way(either_door, body))[0] for body in bodies]

    assert first == 202
    assert again in (200, 202)
    assert others == [409] * 3
    assert await either_door.stored() == 1


async def test_one_array_may_hold_two_that_differ_at_the_bottom(either_door):
    """All or nothing: so it is nothing."""
    jobs = [b'{"id":"a","payload":%b}' % deep(bottom) for bottom in (b"1", b"2")]

    answer = await either_door.post("/enqueue/bulk", content=b"[" + b",".join(jobs) + b"]")

    assert (answer.status_code, answer.json()["ids"]) == (409, ["a"])
    assert await either_door.stored() == 0


@pytest.mark.parametrize("bottom", [b"1", b"null", b"1.5"])
async def test_the_deepest_payload_is_run_and_its_result_shown(either_door, way, bottom):
    await way(either_door, b'{"id":"a","kind":"play","payload":%b}' % deep(bottom))

    told = await either_door.ended("a")

    assert told["status"] == "done"
    assert told["result"] == told["payload"] == json.loads(deep(bottom))


@pytest.mark.parametrize("levels", [DEEPEST + 1, 1000, 100_000])
async def test_a_deeper_one_is_refused_by_every_way(door, way, levels):
    status, told = await way(door, b'{"id":"a","payload":%b}' % deep(b"", levels))

    assert (status, told["code"]) == (422, "invalid")
    assert f"deeper than {DEEPEST} levels" in told["detail"]
    assert await door.stored() == 0


class Tree(msgspec.Struct, forbid_unknown_fields=True):
    """A type that holds itself, so that faults can lie as deep as a payload may."""

    name: str = ""
    inner: "list[Tree]" = []


async def test_a_payload_type_that_holds_itself_is_checked_to_the_bottom(door, way):
    tree = Handler(
        kind="tree", function=lambda tree: None, is_async=False, takes_context=False, payload_type=Tree
    )
    door.node.registry._by_kind["tree"] = tree
    levels = DEEPEST // 2 - 1
    trees = [b'{"inner":[' * levels + bottom + b"]}" * levels for bottom in (b'{"name":"x"}', b'{"name":1}')]

    (fits, _), (unfit, told) = [
        await way(door, b'{"kind":"tree","payload":%b}' % payload) for payload in trees
    ]

    assert (fits, unfit) == (202, 422)
    assert places(told)[0].startswith("/payload/inner/0/inner/0/inner/0")


# Numbers and texts, as they were sent


@pytest.mark.parametrize(
    "payload",
    [
        "-0",
        "-0.0",
        "1E5",
        "1.50",
        "1e-300",
        "5e-324",
        "0e-999",
        "0.1234567890123456789012345",
        "12345678901234567890.5",
        "18446744073709551616",
        "9" * 4000,
        "1.7976931348623157e308",
        '{"a": 0.1000000000000000055511151231257827}',
        '"1e-400 is a text"',
        "[ 1 ,\t2 ]",
        '{"a":1,"a":2}',
    ],
)
async def test_every_number_comes_back_with_every_digit(either_door, way, payload):
    await way(either_door, b'{"id":"a","delay":60,"payload":%b}' % payload.encode())

    shown = await either_door.get("/jobs/a")
    listed = await either_door.get("/jobs?payload=true")

    assert f'"payload":{payload},' in shown.text
    assert f'"payload":{payload},' in listed.text


@pytest.mark.parametrize(
    "body",
    [
        b'{"delay":5.0,"payload" :5.00,"id":"a"}',
        b'{"id":"a","delay":60,"payload":5.00}',
        b'{"id":"a","delay":60,"payload":{"payload":5.0,"x":5.00}}',
        b'{"id":"a","delay":60,"payload" : {"payload":5.0,"x":5.00}}',
        b'{"id":"a","delay":60,"tags":["\\"payload\\":5.0,"],"payload":5.00 }',
    ],
)
async def test_a_number_is_kept_wherever_else_its_usual_form_stands(door, way, body):
    await way(door, body)

    assert "5.00" in (await door.get("/jobs/a")).text


@pytest.mark.parametrize(
    "payload",
    ["1e-400", "[1, -1E-0400]", '{"a":{"b":4.9e-999}}', f"0.{'0' * 400}1", f"0.{'0' * 240}1e-99", "2e-324"],
)
async def test_a_number_that_would_become_0_is_refused(door, way, payload):
    status, told = await way(door, b'{"payload":%b}' % payload.encode())

    assert (status, places(told)) == (422, ["/payload"])
    assert "too small" in told["detail"]


@pytest.mark.parametrize("payload", ["1e400", "-1e400", "[1e309]", "1" * 5000])
async def test_a_number_beyond_all_bounds_is_refused(door, way, payload):
    status, told = await way(door, b'{"payload":%b}' % payload.encode())

    assert status == 422
    assert places(told)[0].startswith("/payload")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (b"1", b"1.0", True),
        (b"1e2", b"100", True),
        (b"-0", b"0", True),
        (b"1", b"true", False),
        (b"0", b"false", False),
        (b"9007199254740993", b"9007199254740992", False),
        (b'"\\u00e9"', '"é"'.encode(), True),
        (b'{"a":1,"b":2}', b'{"b": 2, "a": 1}', True),
    ],
)
async def test_payloads_that_mean_the_same_are_the_same(either_door, way, one, other, same):
    status = None
    for payload in (one, other):
        status, _ = await way(either_door, b'{"id":"a","delay":60,"payload":%b}' % payload)

    assert (status in (200, 202)) is same


async def test_what_a_client_escapes_is_found_by_its_characters(either_door, way):
    payload = json.dumps({"name": 'é "\\u00e9" \\ 日本 \U0001f600 \x00\x1f'}).encode()
    await way(either_door, b'{"id":"a","delay":60,"payload":%b}' % payload)

    found = [
        (await either_door.get("/jobs", params={"text": text})).json()["jobs"]
        for text in ("é", "日本", "\U0001f600", "u00e9")
    ]

    assert [len(jobs) for jobs in found] == [1, 1, 1, 1]
    assert (await either_door.get("/jobs/a")).json()["payload"] == json.loads(payload)


# Times


@pytest.mark.parametrize("name", ["expires_at", "run_at"])
@pytest.mark.parametrize(
    ("time", "shown"),
    [
        ("9999-12-31T23:59:59.999Z", "9999-12-31T23:59:59.999Z"),
        ("9999-12-31T23:59:59.9994Z", "9999-12-31T23:59:59.999Z"),
        ("9999-12-31T23:59:59.999+23:59", "9999-12-31T00:00:59.999Z"),
    ],
)
async def test_the_last_times_are_taken(either_door, way, name, time, shown):
    status, _ = await way(either_door, json.dumps({"id": "a", name: time}).encode())

    assert status == 202
    assert (await either_door.get("/jobs/a")).json()[name] == shown


@pytest.mark.parametrize("name", ["expires_at", "run_at"])
@pytest.mark.parametrize(
    ("time", "words"),
    [
        ("9999-12-31T23:59:59.9996Z", "after the year 9999"),
        ("9999-12-31T23:59:59-00:01", "after the year 9999"),
        ("2016-12-31T23:59:60Z", "leap second"),
        ("2016-12-31T23:59:60.5+01:00", "leap second"),
        ("10000-01-01T00:00:00Z", "RFC 3339"),
        ("0000-01-01T00:00:00Z", "RFC 3339"),
        ("2030-02-30T00:00:00Z", "RFC 3339"),
        ("2030-01-01T24:00:00Z", "RFC 3339"),
        ("2030-01-01T00:00:00+24:00", "RFC 3339"),
        ("2030-01-01T00:00:00", "RFC 3339"),
    ],
)
async def test_other_times_are_refused_in_words(door, way, name, time, words):
    status, told = await way(door, json.dumps({name: time}).encode())

    assert (status, places(told)) == (422, [f"/{name}"])
    assert words in told["detail"]


@pytest.mark.parametrize(
    "time", ["0001-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59", "1969-12-31T23:59:59.999Z"]
)
async def test_a_run_at_that_has_passed_means_now_and_an_expiry_is_refused(door, way, time):
    due, _ = await way(door, json.dumps({"run_at": time}).encode())
    expired, told = await way(door, json.dumps({"expires_at": time}).encode())

    assert (due, expired) == (202, 422)
    assert places(told) in (["/expires_at"], [""])


# What is no JSON, and what is JSON of another form


@pytest.mark.parametrize("white", [b"", b" ", b"\r\n"])
async def test_a_byte_order_mark_is_passed_over(door, way, white):
    status, _ = await way(door, BOM + white.strip(b"\r\n") + b'{"id":"a"}')
    if way is by_array:
        answer = await door.post("/enqueue/bulk", content=BOM + white + b'[{"id":"a"}]')
        status = answer.status_code

    assert status == 202


async def test_byte_order_marks_in_a_stream_are_passed_over_where_files_were_joined(door):
    lines = [BOM + b'{"id":"a"}', b'{"id":"b"}', BOM, BOM + b'{"id":"c"}\r', BOM + b"  "]

    answer = await door.post("/enqueue/bulk", content=b"\n".join(lines), headers=NDJSON)

    assert [json.loads(line)["id"] for line in answer.text.splitlines()] == ["a", "b", "c"]


@pytest.mark.parametrize("size", [100, 101])
async def test_a_byte_order_mark_is_no_part_of_a_lines_length(size):
    async with open_door(max_body=100) as door:
        body = BOM + b'{"payload":"%b"}\r\n' % (b"x" * (size - 14))
        answer = await door.post("/enqueue/bulk", content=body, headers=NDJSON)

    assert json.loads(answer.text)["status"] == ("queued" if size == 100 else 413)


WRONG = [
    (b"", "is empty"),
    (b" \n", "is empty"),
    (b"id=t1&payload=data", "form"),
    (b"\x1f\x8b\x08\x00", "gzip"),
    ('{"id":"a"}'.encode("utf-16"), "UTF-16"),
    ('{"id":"a"}'.encode("utf-16-be"), "UTF-16"),
    ('{"id":"a"}'.encode("utf-32"), "UTF-16 or UTF-32"),
    (b'{"payload":"\xff"}', "0xff at position 12 is not UTF-8"),
    ('{"payload":"é"}'.encode("latin-1"), "0xe9 at position 12 is not UTF-8"),
    (b'{"payload":"\\ud800"}', "\\ud800 is half a character"),
    (b'{"payload":"\\ud83dx"}', "\\ud83d is half a character"),
    (b'{"payload":"\\ud83d\\n"}', "\\ud83d is half a character"),
    (b'{"payload":"\\\\\\udc00"}', "\\udc00 is half a character"),
    (b'{"payload":"\\ud83d\\ude00 \\ude00"}', "\\ude00 is half a character"),
    (b'{"payload":NaN}', "NaN and Infinity are not JSON"),
    (b'{"payload":-Infinity}', "not JSON"),
    (b"{'id':'a'}", "double quotes"),
    (b'{"id":"a"', "ends in the middle"),
    (b'{"id":"a"}\n{"id":"b"}', "application/x-ndjson"),
    (b'{"id":"a",}', "send JSON in UTF-8"),
]


@pytest.mark.parametrize(("body", "words"), WRONG)
async def test_what_is_no_json_is_refused_with_what_is_wrong_and_what_to_send(door, body, words):
    status, told = await by_enqueue(door, body)

    assert (status, told["code"]) == (400, "not_json")
    assert words in told["detail"]
    assert "send" in told["detail"] or "take" in told["detail"]
    assert await door.stored() == 0


@pytest.mark.parametrize(
    ("body", "words"),
    [(body, words) for body, words in WRONG if body.strip() and b"\n" not in body and b"\0" not in body[1:]],
)
async def test_a_line_that_is_no_json_is_refused_by_itself(door, body, words):
    answer = await door.post("/enqueue/bulk", content=body + b'\n{"id":"z"}', headers=NDJSON)
    wrong, right = [json.loads(line) for line in answer.text.splitlines()]

    assert (wrong["code"], wrong["line"]) == ("not_json", 1)
    assert words in wrong["detail"]
    assert right == {"id": "z", "status": "queued"}


@pytest.mark.parametrize("body", [b'{"id":"a"}', b'{"id":"a"}\n{"id":"b"}\n', b" {}", BOM + b"{}\n{}", b"{"])
async def test_lines_that_are_sent_as_an_array_are_told_their_media_type(door, body):
    answer = await door.post("/enqueue/bulk", content=body)

    assert answer.status_code == 422
    assert "Content-Type: application/x-ndjson" in answer.json()["detail"]
    assert await door.stored() == 0


@pytest.mark.parametrize("way", [by_enqueue, by_line])
async def test_an_array_where_one_job_is_taken_is_told_the_way(door, way):
    status, told = await way(door, b'[{"id":"a"}]')

    assert (status, told["faults"][0]["pointer"]) == (422, "")
    assert "/enqueue/bulk as application/json" in told["detail"]


async def test_lines_that_are_sent_to_the_route_for_one_job_are_told_the_way(door):
    answer = await door.post("/enqueue", content=b'{"id":"a"}\n', headers=NDJSON)

    assert answer.status_code == 415
    assert "send application/json" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("job", "detail"),
    [
        ({"delay": "1 hour"}, f"{A_DURATION}, got a string"),
        ({"delay": -1}, A_DURATION),
        ({"priority": 1001}, "expected a whole number from -1000 to 1000"),
        ({"max_retries": "3"}, "expected a whole number from 0 to 10000, got a string"),
        ({"on_crash": "x" * 5000}, "expected one of retry, fail"),
        ({"tags": "a"}, "expected an array of at most 20 tags, got a string"),
        ({"tags": ["a"] * 21}, "expected an array of at most 20 tags"),
        ({"backoff": 5}, "expected an object or null, got a number"),
        ({"payload": 1, "delay": 1, "run_at": "2030-01-01T00:00:00Z"}, None),
        ({"kind": "no.such"}, None),
    ],
)
async def test_a_fault_is_told_in_json_words(door, way, job, detail):
    _, told = await way(door, json.dumps(job).encode())
    (fault,) = told["faults"]

    assert detail is None or fault["detail"] == detail
    assert "`" not in told["detail"]
    assert len(json.dumps(told)) < 1000


# Bounded answers


async def test_thousands_of_faults_in_an_array_make_an_answer_of_a_bounded_length(door):
    jobs = [{"on_crash": "x" * 400, "y" * 900: 1, "tags": [1] * 15} for _ in range(600)]

    answer = await door.post("/enqueue/bulk", json=jobs)

    assert answer.status_code == 422
    assert len(answer.json()["faults"]) == 100
    assert len(answer.content) < 100_000


async def test_a_list_with_payloads_is_bounded_in_bytes(tmp_path):
    """And its cursor leads on to every job."""
    async with open_sqlite(tmp_path / "jobs.db", sync="normal") as store, open_door(store) as door:
        for number in range(9):
            await door.enqueue(id=str(number), delay=60, payload="x" * 1_000_000)
        pages, cursor = [], ""
        while cursor is not None:
            answer = await door.get(f"/jobs?limit=1000&payload=true{cursor and f'&cursor={cursor}'}")
            assert len(answer.content) <= 4 << 20
            pages.append([job["id"] for job in answer.json()["jobs"]])
            cursor = answer.json()["next_cursor"]
        bare = await door.get("/jobs?limit=1000")

    assert pages == [["8", "7", "6", "5"], ["4", "3", "2", "1"], ["0"]]
    assert len(bare.json()["jobs"]) == 9
