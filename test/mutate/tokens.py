"""The tokens of a C file, each with where it stands in the bytes of the file."""

import bisect
import re

PATTERN = re.compile(
    rb"(?P<comment>/\*.*?\*/|//[^\n]*)"
    rb"|(?P<splice>\\\r?\n)"
    rb'|(?P<string>"(?:\\.|[^"\\\n])*")'
    rb"|(?P<char>'(?:\\.|[^'\\\n])*')"
    rb"|(?P<number>\.?[0-9](?:[eEpP][+-]|[0-9A-Za-z_.])*)"
    rb"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    rb"|(?P<newline>\n)"
    rb"|(?P<punct><<=|>>=|\.\.\.|->|\+\+|--|<<|>>|<=|>=|==|!=|&&|\|\||[-+*/%&|^]=|##|[^\s])",
    re.DOTALL,
)
BLANK = ("comment", "splice", "newline")
CLOSING = {b"(": b")", b"[": b"]", b"{": b"}"}


class Token:
    __slots__ = ("kind", "text", "start", "end")

    def __init__(self, kind, text, start):
        self.kind = kind
        self.text = text
        self.start = start
        self.end = start + len(text)

    def __repr__(self):
        return f"{self.kind}:{self.text.decode(errors='replace')}"


class Source:
    """A file: its text, and its tokens but for what is blank."""

    def __init__(self, path, text):
        self.path = path
        self.text = text
        every = [Token(match.lastgroup, match.group(), match.start()) for match in PATTERN.finditer(text)]
        self.tokens = [token for token in every if token.kind not in BLANK]
        self.starts = [token.start for token in self.tokens]
        self.line_starts = [0] + [match.end() for match in re.finditer(rb"\n", text)]
        self.definitions = list(self._definitions(every))

    def line(self, offset):
        return bisect.bisect_right(self.line_starts, offset)

    def index(self, offset):
        """Of the first token that starts at this offset or later."""
        return bisect.bisect_left(self.starts, offset)

    def between(self, start, end):
        """The tokens that start in this range."""
        return self.tokens[self.index(start):self.index(end)]

    def closing(self, index):
        """The index of the token that closes what the token at this index opens; None when there is none."""
        depth = 0
        opening, closing = self.tokens[index].text, CLOSING[self.tokens[index].text]
        for i in range(index, len(self.tokens)):
            if self.tokens[i].text == opening and self.tokens[i].kind == "punct":
                depth += 1
            elif self.tokens[i].text == closing and self.tokens[i].kind == "punct":
                depth -= 1
                if depth == 0:
                    return i
        return None

    def balanced(self, start, end):
        """Does the range have no bracket without its other?"""
        stack = []
        for token in self.between(start, end):
            if token.kind != "punct":
                continue
            if token.text in CLOSING:
                stack.append(CLOSING[token.text])
            elif token.text in CLOSING.values() and (not stack or stack.pop() != token.text):
                return False
        return not stack

    @staticmethod
    def _definitions(every):
        """For each #define with a body: its name, and the tokens of the body."""
        at_start = True
        i = 0
        while i < len(every):
            token = every[i]
            if not (at_start and token.text == b"#"):
                at_start = token.kind == "newline" or (at_start and token.kind == "comment")
                i += 1
                continue
            line = []
            while i < len(every) and every[i].kind != "newline":
                if every[i].kind not in BLANK:
                    line.append(every[i])
                i += 1
            if len(line) > 3 - 1 and line[1].text == b"define":
                body = line[3:]
                if body and line[3].text == b"(" and line[3].start == line[2].end:
                    close = next((k for k, t in enumerate(body) if t.text == b")"), len(body))
                    body = body[close + 1:]
                if body:
                    yield line[2].text.decode(), body
