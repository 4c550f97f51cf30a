"""
A client of PostgreSQL, as small as will do: simple queries over a Unix socket, without a password.

  session = Session("/tmp/sock", 5432, "postgres")
  session.ask("SELECT 1, NULL")     -> [("1", None)]: the rows of the last result, values as text
  session.value("SELECT now()")     -> the first value
  session.tag                       -> command tag of the last result: "COMMIT", "INSERT 0 1"

A statement ends in one of three ways: it returns, it raises SqlError (the server said no), or it raises Lost: the
connection is gone, and what became of the statement is not known.
"""
import socket
import struct


class SqlError(Exception):
    """The server refused; the session goes on."""

    def __init__(self, fields):
        super().__init__(f"{fields.get('C')}: {fields.get('M')}")
        self.sqlstate, self.message = fields.get("C", ""), fields.get("M", "")
        self.context = fields.get("W", "")


class Lost(Exception):
    """The connection is gone, or could not be made."""


class Session:
    def __init__(self, directory, port, user, database="postgres", patience=60):
        self.tag, self.buffer = None, b""
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(patience)
        words = b"".join(word.encode() + b"\0" for word in ("user", user, "database", database,
                                                           "application_name", "torture"))
        try:
            self.socket.connect(f"{directory}/.s.PGSQL.{port}")
            self.socket.sendall(struct.pack("!ii", len(words) + 9, 196608) + words + b"\0")
            self._results()
        except OSError as problem:
            self.drop()
            raise Lost(str(problem)) from None
        except SqlError as problem:
            self.drop()
            raise Lost(str(problem)) from None

    def ask(self, sql):
        data = sql.encode() + b"\0"
        try:
            self.socket.sendall(b"Q" + struct.pack("!i", len(data) + 4) + data)
            return self._results()
        except OSError as problem:
            self.drop()
            raise Lost(str(problem)) from None

    def value(self, sql):
        return self.ask(sql)[0][0]

    def drop(self):
        """Closes the connection without a word, as a client that dies."""
        self.socket.close()

    def close(self):
        try:
            self.socket.sendall(b"X\0\0\0\4")
        except OSError:
            pass
        self.drop()

    def _results(self):
        """Reads until the server is ready for the next query."""
        rows, error = [], None
        while True:
            kind, body = self._message()
            if kind == b"T":
                rows = []
            elif kind == b"D":
                rows.append(self._row(body))
            elif kind == b"C":
                self.tag = body[:-1].decode()
            elif kind == b"E":
                error = {chr(field[0]): field[1:].decode("utf-8", "replace") for field in body.split(b"\0") if field}
                if error.get("V") in ("FATAL", "PANIC"):
                    self.drop()
                    raise Lost(error.get("M"))
            elif kind == b"Z":
                if error:
                    raise SqlError(error)
                return rows

    def _message(self):
        head = self._bytes(5)
        return head[:1], self._bytes(struct.unpack("!i", head[1:])[0] - 4)

    def _bytes(self, length):
        while len(self.buffer) < length:
            data = self.socket.recv(65536)
            if not data:
                raise ConnectionError("the server closed the connection")
            self.buffer += data
        data, self.buffer = self.buffer[:length], self.buffer[length:]
        return data

    @staticmethod
    def _row(body):
        values, at = [], 2
        for _ in range(struct.unpack("!h", body[:2])[0]):
            length, = struct.unpack("!i", body[at:at + 4])
            at += 4
            values.append(None if length < 0 else body[at:at + length].decode())
            at += max(length, 0)
        return tuple(values)
