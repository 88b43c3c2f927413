"""WSGI environments and the framing of an app's response."""

from __future__ import annotations

import pytest

from prouter.web.gunicorn.wsgi import ResponseWriter, environment
from prouter.web.proxy.messages.heads import RequestHead, parse_request


def request(line: str = "GET / HTTP/1.1", *headers: str) -> RequestHead:
    return parse_request("\r\n".join((line, "Host: x", *headers, "", "")).encode("latin-1"))


class Sent:
    """What was sent, piece by piece."""

    def __init__(self, head: RequestHead, *, keep_alive: bool = True) -> None:
        self.pieces: list[bytes] = []
        self.answer = ResponseWriter(head, self.pieces.append, keep_alive=keep_alive)

    @property
    def head(self) -> bytes:
        return b"".join(self.pieces).partition(b"\r\n\r\n")[0] + b"\r\n"

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces).partition(b"\r\n\r\n")[2]


def test_environment_keeps_the_raw_target_and_joins_repeated_headers() -> None:
    head = request("GET /a%20b?q=%20 HTTP/1.1", "X-A: 1", "X-A: 2", "Cookie: a=1", "Cookie: b=2", "X_A: forged")
    environ = environment(head, None, scheme="https", client="10.0.0.1", port=80)
    assert environ["RAW_URI"] == "/a%20b?q=%20"
    assert environ["PATH_INFO"] == "/a b"
    assert environ["QUERY_STRING"] == "q=%20"
    assert environ["HTTP_X_A"] == "1,2"
    assert environ["HTTP_COOKIE"] == "a=1; b=2"
    assert environ["wsgi.url_scheme"] == "https"


def test_a_chunked_request_has_no_content_length() -> None:
    environ = environment(
        request("POST / HTTP/1.1", "Transfer-Encoding: chunked"), None, scheme="http", client="", port=1
    )
    assert environ["HTTP_TRANSFER_ENCODING"] == "chunked"
    assert "CONTENT_LENGTH" not in environ


def test_head_and_first_piece_leave_together() -> None:
    sent = Sent(request())
    sent.answer.start_response("200 OK", [("Content-Length", "5")])
    sent.answer.write(b"hello")
    sent.answer.close()
    assert len(sent.pieces) == 1
    assert sent.body == b"hello"
    assert b"\r\nConnection: keep-alive\r\n" in sent.head
    assert sent.answer.keep_alive


def test_a_body_of_unknown_length_is_chunked() -> None:
    sent = Sent(request())
    sent.answer.start_response("200 OK", [])
    sent.answer.write(b"hello")
    sent.answer.close()
    assert sent.body == b"5\r\nhello\r\n0\r\n\r\n"
    assert b"\r\nTransfer-Encoding: chunked\r\n" in sent.head
    assert sent.answer.keep_alive


def test_a_body_of_unknown_length_ends_the_connection_with_http_1_0() -> None:
    sent = Sent(request("GET / HTTP/1.0", "Connection: keep-alive"))
    sent.answer.start_response("200 OK", [])
    sent.answer.write(b"hello")
    sent.answer.close()
    assert sent.body == b"hello"
    assert b"\r\nConnection: close\r\n" in sent.head
    assert not sent.answer.keep_alive


@pytest.mark.parametrize(("line", "status"), [("HEAD / HTTP/1.1", "200 OK"), ("GET / HTTP/1.1", "304 Not Modified")])
def test_answers_without_a_body_keep_their_length(line: str, status: str) -> None:
    sent = Sent(request(line))
    sent.answer.start_response(status, [("Content-Length", "5")])
    sent.answer.write(b"hello")
    sent.answer.close()
    assert sent.body == b""
    assert b"\r\nContent-Length: 5\r\n" in sent.head
    assert sent.answer.keep_alive


def test_204_has_neither_body_nor_length() -> None:
    sent = Sent(request())
    sent.answer.start_response("204 No Content", [("Content-Length", "0")])
    sent.answer.close()
    assert sent.body == b""
    assert b"Content-Length" not in sent.head
    assert b"Transfer-Encoding" not in sent.head


def test_hop_by_hop_headers_of_the_app_are_dropped() -> None:
    sent = Sent(request(), keep_alive=False)
    sent.answer.start_response("200 OK", [("Connection", "keep-alive"), ("Transfer-Encoding", "x"), ("X-A", "1")])
    sent.answer.close()
    assert b"\r\nConnection: close\r\n" in sent.head
    assert sent.head.count(b"Transfer-Encoding") == 1
    assert b"\r\nX-A: 1\r\n" in sent.head


def test_a_wrong_length_is_an_error() -> None:
    sent = Sent(request())
    sent.answer.start_response("200 OK", [("Content-Length", "5")])
    with pytest.raises(ValueError, match="longer"):
        sent.answer.write(b"hello!")
    sent.answer.write(b"hell")
    with pytest.raises(ValueError, match="shorter"):
        sent.answer.close()


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: x=1", "a\nb", "a\0b"])
def test_no_header_can_break_out_of_its_line(value: str) -> None:
    sent = Sent(request())
    sent.answer.start_response("200 OK", [("X-A", value)])
    with pytest.raises(ValueError, match="line break"):
        sent.answer.write(b"hello")
    assert not sent.answer.head_sent
