"""Text → syntax, as bash 5.2 reads it.

Written by hand rather than taken from a grammar for editors: commands stand in documents
beside placeholders and prose, and one odd line must not change how the next one is read. What the shell
would refuse is noted as a :class:`Trouble`, the line is left, and reading goes on behind it.
"""

from __future__ import annotations

import re

from mgpu_doctor.model.pattern import pattern
from mgpu_doctor.model.record import replace
from mgpu_doctor.shell.syntax import (
    Arithmetic,
    ArrayNode,
    Assignment,
    Compound,
    Function,
    Here,
    Item,
    Literal,
    Node,
    Parameter,
    Parsed,
    Part,
    Placeholder,
    RawMark,
    RedirectNode,
    Simple,
    Substitution,
    Trouble,
    WordNode,
)

DEEPEST = 24
"""Nesting beyond which a text is left alone: no script that people write comes near, and Python's stack ends."""

DECLARATIONS = frozenset({"export", "declare", "typeset", "local", "readonly"})

_BLANKS = pattern(r"(?:[ \t\v\f]+|\r(?=\n|$))+")
_PLAIN = pattern(r"""[^\s\\'"`$;&|()<>]+""")
_RUN = pattern(r"""[^\\'"`$;&|()<> \t\n\r\v\f]+""")
_DOUBLE_RUN = pattern(r'[^\\"`$\n\r]+')
_HERE_RUN = pattern(r"[^\\`$]+")
_BRACE_RUN = pattern(r"""[^\\'"`$}]+""")
_BRACE_RUN_QUOTED = pattern(r'[^\\"`$}]+')
_ASSIGNMENT = pattern(r"([A-Za-z_]\w*)(\+?)=", re.ASCII)
_INDEXED = pattern(r"([A-Za-z_]\w*)\[([^\]\n]*)\](\+?)=", re.ASCII)
_REDIRECT = pattern(r"(?:\d+|\{[A-Za-z_]\w*\})?(?:<<<|<<-|<<|<>|<&|>&|>>|>\||<(?!\()|>(?!\())|&>>|&>(?!&)", re.ASCII)
_PLACEHOLDER = pattern(r"<[A-Za-z_\u4e00-\u9fff.$/{\[][^<>\n\"'`;&|]*(?<![\s-])>(?=$|[\s\\\"'/.,:;)\]}_=@-])")
_NAME = pattern(r"[A-Za-z_]\w*", re.ASCII)
_SPECIAL = pattern(r"[0-9@*#?$!-]")
_BRACED = pattern(r"\$\{(!?)(#(?=[A-Za-z_0-9@*?$!]))?([A-Za-z_]\w*|\d+|[@*#?$!-])", re.ASCII)
_OPERATOR = pattern(r":[-=?+]|[-=?+]|##?|%%?|//|/#|/%|/|\^\^?|,,?|@(?=[A-Za-z]\})|:")
_FUNCTION = pattern(r"([^\s\\'\"`$;&|()<>=]+)[ \t]*\([ \t]*\)")
_WORD_END = pattern(r"[\s;&|()<>]|$")
_RESERVED = pattern(
    r"(?:if|then|elif|else|fi|for|select|while|until|do|done|case|esac|function|\{|\}|!|\[\[|coproc)(?=[\s;&|()<>]|$)"
)
_PROMPT = pattern(r"\$[ \t]+(?=\S)")
_BANG = pattern(r"!(?=[A-Za-z_/.])")
_LOOK_ALIKES = pattern(
    "[\u2010-\u2015\u2212\ufe58\ufe63\uff0d\u2018-\u201f\u00ab\u00bb\u2032\u2033\u00a0\u1680\u2000-\u200b\u202f\u205f\u2060\u3000\ufeff\uff02\uff07\uff0c\uff1a\uff0f\uff3f\uff1d\uff5c\uff06\uff1b\uff3c]"
)
_REST_OF_LINE = pattern(r"[ \t]*(?:\r?\n|$)")
_ESCAPED_BLANK = pattern(r"\\([ \t]+)(?=\r?\n|$|#)")
_ANSI = {
    "n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "e": "\x1b", "E": "\x1b", "f": "\f", "v": "\v",
    "\\": "\\", "'": "'", '"': '"', "?": "?",
}  # fmt: skip


class Refused(Exception):  # noqa: N818 - control flow inside the parser
    """The shell would refuse the text here."""

    def __init__(self, message: str, start: int, end: int | None = None, *, sure: bool = True) -> None:
        super().__init__(message)
        self.trouble = Trouble(message, start, start + 1 if end is None else end, sure)


def parse(text: str) -> Parsed:
    """The syntax of a shell text; never raises, whatever the text is."""
    parser = _Parser(text)
    items = parser.program()
    parser.look_alikes()
    marks = tuple(sorted(set(parser.marks), key=lambda mark: (mark.start, mark.end)))
    return Parsed(items, tuple(parser.heres), marks, tuple(parser.troubles))


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.end = len(text)
        self.pos = 0
        self.depth = 0
        self.marks: list[RawMark] = []
        self.troubles: list[Trouble] = []
        self.heres: list[Here | None] = []
        self.pending: list[tuple[int, str, bool, bool]] = []
        self.unquoted: list[tuple[int, int]] = []
        self.ascii = text.isascii()

    # ---------------------------------------------------------------- lists

    def program(self) -> tuple[Item, ...]:
        items: list[Item] = []
        while True:
            items.extend(self.items(()))
            if self.pos >= self.end:
                break
            # Something that closes what was never opened.
            start = self.pos
            if self.text[start] == ")":
                self.pos += 1
            else:
                match = _RESERVED.match(self.text, start)
                self.pos = match.end() if match else start + 1
            self.troubles.append(Trouble(f"`{self.text[start : self.pos]}` closes nothing", start, self.pos))
        self.read_heres()
        return tuple(items)

    def items(self, closers: tuple[str, ...]) -> list[Item]:
        """Pipelines up to one of the closing words, a ``)`` or the end; does not consume what closes."""
        out: list[Item] = []
        joined = ""
        while True:
            self.skip_lines()
            if self.pos >= self.end or self.closes(closers):
                return out
            start = self.pos
            try:
                item = self.pipeline(joined)
            except Refused as refused:
                self.troubles.append(refused.trouble)
                self.recover(start)
                joined = ""
                continue
            joined, item = self.separator(item)
            out.append(item)

    def body(self, closers: tuple[str, ...], start: int, opener: str) -> list[Item]:
        """The commands inside something; bash wants at least one."""
        known = len(self.troubles)
        items = self.items(closers)
        if not items and len(self.troubles) == known and self.pos < self.end:
            self.troubles.append(Trouble(f"nothing stands inside `{opener}`", start, start + len(opener)))
        return items

    def separator(self, item: Item) -> tuple[str, Item]:
        self.skip_blanks()
        text, at = self.text, self.pos
        for operator in ("&&", "||"):
            if text.startswith(operator, at):
                self.pos += 2
                return operator, item
        if text.startswith(";", at):
            if not text.startswith(";;", at) and not text.startswith(";&", at):
                self.pos += 1
        elif text.startswith("&", at):
            self.pos += 1
            item = replace(item, background=True)
        return "", item

    def closes(self, closers: tuple[str, ...]) -> bool:
        """Whether a closing word (whoever it belongs to) stands here."""
        text, at = self.text, self.pos
        if text[at] == ")" or text.startswith(";;", at) or text.startswith(";&", at):
            return True
        if text[at] in "tefd}":
            match = _RESERVED.match(text, at)
            return match is not None and (
                match.group() in closers or match.group() in ("then", "elif", "else", "fi", "do", "done", "esac", "}")
            )
        return False

    def recover(self, start: int) -> None:
        """Leave the line on which reading failed."""
        at = max(self.pos, start + 1)
        newline = self.text.find("\n", at - 1 if self.text[at - 1 : at] == "\n" else at)
        self.pos = self.end if newline < 0 else newline
        if self.pos <= start:
            self.pos = start + 1

    def pipeline(self, joined: str) -> Item:
        negated = False
        commands: list[Node] = []
        while True:
            self.skip_blanks()
            text, at = self.text, self.pos
            if text.startswith("!", at) and at + 1 < self.end and text[at + 1] in " \t":
                negated = not negated
                self.pos += 1
                continue
            commands.append(self.command())
            self.skip_blanks()
            text, at = self.text, self.pos
            if text.startswith("|", at) and not text.startswith("||", at):
                self.pos += 2 if text.startswith("|&", at) else 1
                self.skip_lines()
                if self.pos >= self.end:
                    raise Refused("nothing stands behind the pipe", at)
                continue
            return Item(joined, tuple(commands), background=False, negated=negated)

    # ---------------------------------------------------------------- commands

    def command(self) -> Node:
        self.depth += 1
        try:
            if self.depth > DEEPEST:
                raise Refused("nested too deeply to follow", self.pos, sure=False)
            return self.any_command()
        finally:
            self.depth -= 1

    def any_command(self) -> Node:
        text, at = self.text, self.pos
        if at >= self.end:
            raise Refused("a command is missing", max(at - 1, 0))
        prompt = _PROMPT.match(text, at) or _BANG.match(text, at)
        if prompt:
            self.pos = at = prompt.end()
        char = text[at]
        if char == "(":
            if text.startswith("((", at):
                node = self.arithmetic_command()
                if node is not None:
                    return node
            return self.subshell()
        if char in ";&|":
            raise Refused(f"no command stands before `{char}`", at)
        match = _RESERVED.match(text, at)
        if match:
            return self.reserved(match.group())
        function = _FUNCTION.match(text, at)
        if function and "=" not in function.group(1):
            self.pos = function.end()
            self.skip_lines()
            return self.function(function.group(1), at)
        return self.simple()

    def reserved(self, word: str) -> Node:  # noqa: C901 - one branch for each form
        start = self.pos
        if word == "{":
            self.pos += 1
            body = self.body(("}",), start, "{")
            self.close("}", start, "{")
            return self.finish("group", (tuple(body),), start)
        if word == "if":
            return self.if_command()
        if word in ("while", "until"):
            self.pos += len(word)
            condition = self.body(("do",), start, word)
            self.close("do", start, word)
            body = self.body(("done",), start, word)
            self.close("done", start, word)
            return self.finish(word, (tuple(condition), tuple(body)), start)
        if word in ("for", "select"):
            return self.for_command(word)
        if word == "case":
            return self.case_command()
        if word == "function":
            self.pos += len(word)
            self.skip_blanks()
            name = _PLAIN.match(self.text, self.pos)
            if name is None:
                raise Refused("the function has no name", start, self.pos)
            self.pos = name.end()
            self.skip_blanks()
            brackets = re.compile(r"\([ \t]*\)").match(self.text, self.pos)
            if brackets:
                self.pos = brackets.end()
            self.skip_lines()
            return self.function(name.group(), start)
        if word == "[[":
            return self.test_command()
        if word == "coproc":
            self.pos += len(word)
            self.skip_blanks()
            return self.command()
        if word == "!":
            self.pos += 1
            self.skip_blanks()
            return self.command()
        raise Refused(f"`{word}` stands where a command is expected", start, start + len(word))

    def function(self, name: str, start: int) -> Function:
        if self.pos >= self.end:
            raise Refused(f"the function {name} has no body", start, self.pos)
        body = self.command()
        return Function(name, body, start, self.pos)

    def finish(self, kind: str, branches: tuple[tuple[Item, ...], ...], start: int, **more: object) -> Compound:
        end = self.pos
        redirects = self.redirects()
        return Compound(kind, branches, redirects, start, redirects[-1].end if redirects else end, **more)  # type: ignore[arg-type]

    def redirects(self) -> tuple[RedirectNode, ...]:
        out: list[RedirectNode] = []
        while True:
            self.skip_blanks()
            match = _REDIRECT.match(self.text, self.pos)
            if match is None:
                return tuple(out)
            out.append(self.redirect(match))

    def close(self, word: str, start: int, opener: str) -> None:
        """Consume a closing word; when it is missing, say so and go on as if it stood here."""
        self.skip_lines()
        match = _RESERVED.match(self.text, self.pos)
        if match and match.group() == word:
            self.pos = match.end()
            return
        if self.pos < self.end:
            found = match.group() if match else self.text[self.pos]
            raise Refused(f"`{opener}` wants `{word}`, `{found}` stands here", self.pos, self.pos + len(found))
        self.troubles.append(Trouble(f"`{opener}` is never closed by `{word}`", start, start + len(opener)))

    def subshell(self) -> Compound:
        start = self.pos
        self.pos += 1
        body = self.body((), start, "(")
        self.skip_lines()
        if self.pos < self.end and self.text[self.pos] == ")":
            self.pos += 1
        elif self.pos < self.end:
            raise Refused("`(` is never closed", start)
        else:
            self.troubles.append(Trouble("`(` is never closed", start, start + 1))
        return self.finish("subshell", (tuple(body),), start)

    def arithmetic_command(self) -> Compound | None:
        start = self.pos
        end = self.balanced(start + 2, "))")
        if end is None:
            return None
        self.pos = end + 2
        return self.finish("arithmetic", (), start, expression=self.text[start + 2 : end])

    def balanced(self, at: int, closing: str) -> int | None:
        """Where ``closing`` stands at bracket depth 0 from ``at`` on, quotes skipped roughly; None when nowhere."""
        depth = 0
        text = self.text
        while at < self.end:
            char = text[at]
            if char == "\\":
                at += 1
            elif char in "([":
                depth += 1
            elif depth == 0 and text.startswith(closing, at):
                return at
            elif char in ")]":
                depth -= 1
                if depth < 0:
                    return None
            elif char in ";\n" and closing == "))" and depth == 0 and char == "\n":
                return None
            at += 1
        return None

    def if_command(self) -> Compound:
        start = self.pos
        branches: list[tuple[Item, ...]] = []
        self.pos += 2
        while True:
            condition = self.body(("then",), start, "if")
            self.close("then", start, "if")
            body = self.body(("elif", "else", "fi"), start, "if")
            branches += [tuple(condition), tuple(body)]
            match = _RESERVED.match(self.text, self.pos)
            word = match.group() if match else ""
            if word == "elif":
                self.pos += 4
                continue
            if word == "else":
                self.pos += 4
                branches.append(tuple(self.body(("fi",), start, "if")))
            self.close("fi", start, "if")
            return self.finish("if", tuple(branches), start)

    def for_command(self, kind: str) -> Compound:
        start = self.pos
        self.pos += len(kind)
        self.skip_blanks()
        name = None
        words: tuple[WordNode, ...] | None = None
        expression = ""
        if self.text.startswith("((", self.pos):
            end = self.balanced(self.pos + 2, "))")
            if end is None:
                raise Refused("`((` is never closed", self.pos, self.pos + 2)
            expression = self.text[self.pos + 2 : end]
            self.pos = end + 2
        else:
            match = _NAME.match(self.text, self.pos)
            if match is None:
                raise Refused("the loop has no variable", start, start + len(kind), sure=False)
            name = match.group()
            self.pos = match.end()
            self.skip_lines()
            if re.compile(r"in(?=[\s;]|$)").match(self.text, self.pos):
                self.pos += 2
                words = self.words_to_line_end()
        self.skip_blanks()
        if self.text.startswith(";", self.pos):
            self.pos += 1
        self.skip_lines()
        closing = "done"
        if self.text.startswith("{", self.pos):
            closing = "}"
            self.pos += 1
        else:
            self.close("do", start, kind)
        body = self.body((closing,), start, kind)
        self.close(closing, start, kind)
        return self.finish("for", ((), tuple(body)), start, name=name, words=words, expression=expression)

    def words_to_line_end(self) -> tuple[WordNode, ...]:
        out: list[WordNode] = []
        while True:
            self.skip_blanks()
            if self.pos >= self.end or self.text[self.pos] in "\n;&|)":
                return tuple(out)
            out.append(self.word())

    def case_command(self) -> Compound:  # noqa: C901 - one branch for each form
        start = self.pos
        self.pos += 4
        self.skip_blanks()
        if self.pos >= self.end or _WORD_END.match(self.text, self.pos):
            raise Refused("`case` has no word", start, start + 4)
        subject = self.word()
        self.skip_lines()
        if not self.text.startswith("in", self.pos):
            raise Refused("`case` wants `in`", start, start + 4)
        self.pos += 2
        branches: list[tuple[Item, ...]] = []
        while True:
            self.skip_lines()
            if self.pos >= self.end or re.compile(r"esac(?=[\s;&|)]|$)").match(self.text, self.pos):
                self.close("esac", start, "case")
                return self.finish("case", tuple(branches), start, words=(subject,))
            if self.text[self.pos] == "(":
                self.pos += 1
            while True:
                self.skip_blanks()
                if self.pos < self.end and self.text[self.pos] == "|":
                    self.pos += 1
                    continue
                if self.pos >= self.end or self.text[self.pos] in "\n;&<>(":
                    raise Refused("a pattern of `case` wants `)`", self.pos, sure=False)
                if self.text[self.pos] == ")":
                    self.pos += 1
                    break
                self.word()
            branches.append(tuple(self.items(("esac",))))
            match = re.compile(r";;&|;;|;&").match(self.text, self.pos)
            if match:
                self.pos = match.end()
            elif self.pos < self.end and not self.text.startswith("esac", self.pos):
                raise Refused("a branch of `case` wants `;;`", self.pos, sure=False)

    def test_command(self) -> Compound:
        start = self.pos
        self.pos += 2
        while self.pos < self.end:
            char = self.text[self.pos]
            if char in " \t\n" and re.compile(r"\s\]\](?=[\s;&|)]|$)").match(self.text, self.pos):
                self.pos += 3
                return self.finish("test", (), start)
            if char in "'\"`$\\":
                self.quoted_or_expansion([])
            else:
                self.pos += 1
        raise Refused("`[[` is never closed by `]]`", start, start + 2)

    # ---------------------------------------------------------------- simple commands

    def simple(self) -> Simple:  # noqa: C901 - one branch for each form
        start = self.pos
        lead: list[WordNode] = []
        assignments: list[Assignment] = []
        words: list[WordNode | Assignment] = []
        redirects: list[RedirectNode] = []
        declares = False
        end = start
        text = self.text
        while True:
            self.skip_blanks()
            at = self.pos
            if at >= self.end:
                break
            char = text[at]
            if char == "<" and (placeholder := _PLACEHOLDER.match(text, at)):
                words.append(self.word())
                end = self.pos
                del placeholder
                continue
            match = _REDIRECT.match(text, at) if char in "<>&{0123456789" else None
            if match:
                redirects.append(self.redirect(match))
                end = self.pos
                continue
            if char in "\n;&|)":
                break
            if char == "(":
                raise Refused("`(` cannot stand here", at)
            if not words or declares:
                assignment = self.assignment()
                if assignment is not None:
                    if words:
                        words.append(assignment)
                    else:
                        assignments.append(assignment)
                    end = self.pos
                    continue
            word = self.word()
            end = self.pos
            if not words and not assignments:
                plain = text[word.start : word.end]
                if plain == "time" or (lead and plain == "-p" and len(lead) == 1):
                    lead.append(word)
                    continue
            if not words:
                name = text[word.start : word.end]
                declares = name in DECLARATIONS
            words.append(word)
        return Simple(tuple(lead), tuple(assignments), tuple(words), tuple(redirects), start, end)

    def assignment(self) -> Assignment | None:
        start = self.pos
        match = _ASSIGNMENT.match(self.text, start)
        index = None
        if match:
            name, append = match.group(1), match.group(2) == "+"
        else:
            match = _INDEXED.match(self.text, start)
            if match is None:
                return None
            name, index, append = match.group(1), match.group(2), match.group(3) == "+"
        self.pos = match.end()
        value: WordNode | ArrayNode
        value = self.array() if self.pos < self.end and self.text[self.pos] == "(" else self.word(allow_empty=True)
        return Assignment(name, index, append, value, start, self.pos)

    def array(self) -> ArrayNode:
        start = self.pos
        self.pos += 1
        items: list[tuple[str | None, WordNode]] = []
        while True:
            self.skip_lines()
            if self.pos >= self.end:
                raise Refused("`(` of the array is never closed", start)
            char = self.text[self.pos]
            if char == ")":
                self.pos += 1
                return ArrayNode(tuple(items), start, self.pos)
            if char in ";&|(":
                raise Refused(f"`{char}` cannot stand in an array", self.pos)
            if (
                char in "<>"
                and not _PLACEHOLDER.match(self.text, self.pos)
                and self.text[self.pos + 1 : self.pos + 2] != "("
            ):
                raise Refused(f"`{char}` cannot stand in an array", self.pos)
            index = re.compile(r"\[([^\]\n]*)\]=").match(self.text, self.pos)
            if index:
                self.pos = index.end()
                items.append((index.group(1), self.word(allow_empty=True)))
            else:
                items.append((None, self.word()))

    def redirect(self, match: re.Match[str]) -> RedirectNode:
        start = self.pos
        operator = match.group()
        self.pos = match.end()
        bare = operator.lstrip("0123456789")
        self.skip_blanks()
        if self.pos >= self.end or (
            self.text[self.pos] in "\n;&|()<>" and not self.text.startswith(("<(", ">("), self.pos)
        ):
            if self.text.startswith("<", self.pos) and _PLACEHOLDER.match(self.text, self.pos):
                return RedirectNode(operator, self.word(), start, self.pos)
            raise Refused(f"nothing stands behind `{operator}`", start, match.end())
        target = self.word()
        here = None
        if bare in ("<<", "<<-"):
            here = len(self.heres)
            self.heres.append(None)
            delimiter = "".join(
                part.text if isinstance(part, Literal) else self.text[part.start : part.end] for part in target.parts
            )
            quoted = any(isinstance(part, Literal) and part.quoted for part in target.parts)
            self.pending.append((here, delimiter, quoted, bare == "<<-"))
        return RedirectNode(operator, target, start, self.pos, here)

    def read_heres(self) -> None:
        """Read the bodies of the here-documents that were announced on the line above."""
        pending, self.pending = self.pending, []
        for number, delimiter, quoted, tabs in pending:
            start = at = self.pos
            while True:
                if at >= self.end:
                    self.heres[number] = self.here_body(start, self.end, quoted=quoted)
                    self.pos = self.end
                    break
                newline = self.text.find("\n", at)
                stop = self.end if newline < 0 else newline
                line = self.text[at:stop].rstrip("\r")
                if (line.lstrip("\t") if tabs else line) == delimiter:
                    self.heres[number] = self.here_body(start, at, quoted=quoted)
                    self.pos = stop if newline < 0 else stop + 1
                    break
                at = self.end if newline < 0 else newline + 1

    def here_body(self, start: int, end: int, *, quoted: bool) -> Here:
        if quoted:
            return Here((Literal(self.text[start:end], start, end, quoted=True),), start, end)
        inner = _Parser(self.text[:end])
        inner.depth = self.depth + 1
        inner.pos = start
        parts: list[Part] = []
        try:
            while inner.pos < end:
                run = _HERE_RUN.match(inner.text, inner.pos)
                if run:
                    parts.append(Literal(run.group(), run.start(), run.end(), quoted=True))
                    inner.pos = run.end()
                elif inner.text[inner.pos] == "\\":
                    inner.escape_in_double(parts, '"')
                else:
                    inner.expansion(parts, quoted=True)
        except Refused:
            parts.append(Literal(self.text[inner.pos : end], inner.pos, end, quoted=True))
        return Here(tuple(parts), start, end)

    # ---------------------------------------------------------------- words

    def word(self, *, allow_empty: bool = False) -> WordNode:  # noqa: C901 - one branch for each form
        start = self.pos
        parts: list[Part] = []
        text = self.text
        while self.pos < self.end:
            at = self.pos
            run = _RUN.match(text, at)
            if run:
                parts.append(Literal(run.group(), at, run.end()))
                self.unquoted.append((at, run.end()))
                self.pos = run.end()
                continue
            char = text[at]
            if char in "'\"`$\\":
                if not self.quoted_or_expansion(parts):
                    break
                continue
            if char in "<>" and text.startswith("(", at + 1):
                self.process_substitution(parts)
                continue
            if char == "<" and (placeholder := _PLACEHOLDER.match(text, at)):
                parts.append(Placeholder(at, placeholder.end()))
                self.pos = placeholder.end()
                continue
            if (
                char == "("
                and parts
                and isinstance(parts[-1], Literal)
                and parts[-1].text[-1:] in ("@", "?", "*", "+", "!")
            ):
                end = self.balanced(at + 1, ")")
                if end is not None and "\n" not in text[at:end]:
                    parts.append(Substitution(at, end + 1, kind="*"))
                    self.pos = end + 1
                    continue
            if char == "\r" and not (text.startswith("\r\n", at) or at + 1 == self.end):
                parts.append(Literal(char, at, at + 1))
                self.pos += 1
                continue
            break
        if not parts and not allow_empty:
            if self.pos < self.end:
                raise Refused(f"`{text[self.pos]}` cannot stand here", self.pos)
            raise Refused("a word is missing", max(self.pos - 1, 0), sure=False)
        return WordNode(tuple(parts), start, self.pos)

    def quoted_or_expansion(self, parts: list[Part]) -> bool:
        """Read what a quote, a backslash, ``$`` or a backquote opens; False when it ends the word."""
        text, at = self.text, self.pos
        char = text[at]
        if char == "'":
            end = text.find("'", at + 1)
            if end < 0:
                raise Refused("this quotation mark is never closed", at)
            parts.append(Literal(text[at + 1 : end], at + 1, end, quoted=True))
            self.pos = end + 1
        elif char == '"':
            self.pos += 1
            self.double(parts, at)
        elif char == "\\":
            return self.escape(parts)
        else:
            self.expansion(parts, quoted=False)
        return True

    def escape(self, parts: list[Part]) -> bool:
        text, at = self.text, self.pos
        continued = self.continuation(at)
        if continued:
            self.pos = continued
            return True
        if at + 1 >= self.end:
            # bash keeps a backslash at the very end of its input.
            self.marks.append(RawMark("dangling", at, at + 1))
            self.pos += 1
            if parts:
                parts.append(Literal("\\", at, at + 1, quoted=True))
                return True
            parts.append(Literal("\\", at, at + 1, quoted=True))
            return True
        blank = _ESCAPED_BLANK.match(text, at)
        if blank:
            self.marks.append(RawMark("escaped-blank", at, blank.end(), text[blank.end() : blank.end() + 1].strip()))
        parts.append(Literal(text[at + 1], at, at + 2, quoted=True, exact=False))
        self.pos = at + 2
        return True

    def continuation(self, at: int) -> int:
        """Where the text goes on behind a backslash and newline at ``at``; 0 when there are none."""
        text = self.text
        if text.startswith("\\\n", at):
            end = at + 2
        elif text.startswith("\\\r\n", at):
            end = at + 3
        else:
            return 0
        rest = _REST_OF_LINE.match(text, end)
        kind = "dangling" if rest else "continuation"
        self.marks.append(RawMark(kind, at, end))
        return end

    def double(self, parts: list[Part], opened: int) -> None:
        """The inside of double quotes, up to and with the closing one."""
        text = self.text
        first = len(parts)
        while True:
            if self.pos >= self.end:
                raise Refused("this quotation mark is never closed", opened)
            at = self.pos
            run = _DOUBLE_RUN.match(text, at)
            if run:
                parts.append(Literal(run.group(), at, run.end(), quoted=True))
                self.pos = run.end()
                continue
            char = text[at]
            if char == '"':
                self.pos += 1
                if len(parts) == first:
                    parts.append(Literal("", at, at, quoted=True))
                return
            if char == "\\":
                self.escape_in_double(parts, '"')
            elif char in "$`":
                self.expansion(parts, quoted=True)
            else:
                if not text.startswith("\r\n", at):
                    parts.append(Literal(char, at, at + 1, quoted=True))
                self.pos += 1

    def escape_in_double(self, parts: list[Part], quote: str) -> None:
        at = self.pos
        continued = self.continuation(at)
        if continued:
            self.pos = continued
            # A word goes on inside the quotes; the newline is gone.
            parts.append(Literal("", at, at, quoted=True))
            return
        following = self.text[at + 1 : at + 2]
        if following and following in "$`\\" + quote:
            parts.append(Literal(following, at, at + 2, quoted=True, exact=False))
            self.pos = at + 2
        else:
            parts.append(Literal("\\", at, at + 1, quoted=True))
            self.pos = at + 1

    def process_substitution(self, parts: list[Part]) -> None:
        start = self.pos
        self.pos += 1
        body = self.bracketed(start)
        parts.append(Substitution(start, self.pos, kind="<(", body=body))

    def bracketed(self, start: int) -> tuple[Item, ...]:
        """The commands in the brackets that open here."""
        self.depth += 1
        pending, self.pending = self.pending, []
        known = len(self.troubles)
        try:
            if self.depth > DEEPEST:
                raise Refused("nested too deeply to follow", self.pos, sure=False)
            self.pos += 1
            opened = self.pos
            body = self.items(())
            self.skip_lines()
            if self.pos >= self.end or self.text[self.pos] != ")" or len(self.troubles) > known:
                del self.troubles[known:]
                self.pos = opened
                end = self.balanced(opened, ")")
                if end is None:
                    self.pos = start + 1
                    raise Refused("`(` is never closed", start)
                self.pos = end + 1
                return ()
            self.pos += 1
            return tuple(body)
        finally:
            self.depth -= 1
            self.pending = pending + self.pending

    def expansion(self, parts: list[Part], *, quoted: bool) -> None:  # noqa: C901 - one branch for each form
        text, at = self.text, self.pos
        if text[at] == "`":
            end = at + 1
            while end < self.end and text[end] != "`":
                end += 2 if text[end] == "\\" else 1
            if end >= self.end:
                raise Refused("this backquote is never closed", at)
            self.pos = end + 1
            parts.append(Substitution(at, end + 1, quoted, "$("))
            return
        following = text[at + 1 : at + 2]
        if following == "(":
            if text.startswith("((", at + 1):
                closing = self.arithmetic_end(at + 3)
                if closing is not None:
                    parts.append(Arithmetic(text[at + 3 : closing], at, closing + 2, quoted))
                    self.pos = closing + 2
                    return
            self.pos = at + 1
            body = self.bracketed(at)
            parts.append(Substitution(at, self.pos, quoted, "$(", body))
            return
        if following == "{":
            self.braced(parts, quoted=quoted)
            return
        if following == "'" and not quoted:
            self.ansi(parts)
            return
        if following == '"' and not quoted:
            self.pos = at + 2
            self.double(parts, at + 1)
            return
        if following == "[":
            closing = self.balanced(at + 2, "]")
            if closing is not None and "\n" not in text[at:closing]:
                parts.append(Arithmetic(text[at + 2 : closing], at, closing + 1, quoted))
                self.pos = closing + 1
                return
        name = _NAME.match(text, at + 1) or _SPECIAL.match(text, at + 1)
        if name:
            self.pos = name.end()
            parts.append(Parameter(name.group(), at, self.pos, quoted))
            return
        parts.append(Literal("$", at, at + 1, quoted))
        self.pos = at + 1

    def arithmetic_end(self, at: int) -> int | None:
        depth = 0
        while at < self.end:
            char = self.text[at]
            if char == "(":
                depth += 1
            elif char == ")":
                if depth == 0:
                    return at if self.text.startswith("))", at) else None
                depth -= 1
            elif char in "'\";`":
                return None
            at += 1
        return None

    def braced(self, parts: list[Part], *, quoted: bool) -> None:
        start = self.pos
        match = _BRACED.match(self.text, start)
        if match is None:
            end = self.text.find("}", start)
            line = self.text.find("\n", start)
            if end < 0 or 0 <= line < end:
                raise Refused("`${` is never closed", start, start + 2)
            self.pos = end + 1
            parts.append(Substitution(start, self.pos, quoted, "${"))
            return
        self.pos = match.end()
        index = None
        if self.text.startswith("[", self.pos):
            closing = self.balanced(self.pos + 1, "]")
            if closing is not None:
                index = self.text[self.pos + 1 : closing]
                self.pos = closing + 1
        operator = ""
        arguments: list[tuple[Part, ...]] = []
        if not self.text.startswith("}", self.pos):
            found = _OPERATOR.match(self.text, self.pos)
            if found is None:
                end = self.text.find("}", start)
                if end < 0:
                    raise Refused("`${` is never closed", start, start + 2)
                self.pos = end + 1
                parts.append(Substitution(start, self.pos, quoted, "${"))
                return
            operator = found.group()
            self.pos = found.end()
            separator = "/" if operator.startswith("/") else ":" if operator == ":" else ""
            arguments.append(self.operand(start, separator, quoted=quoted))
            while separator and self.text.startswith(separator, self.pos):
                self.pos += 1
                arguments.append(self.operand(start, "", quoted=quoted))
        if not self.text.startswith("}", self.pos):
            raise Refused("`${` is never closed", start, start + 2)
        self.pos += 1
        parts.append(
            Parameter(
                match.group(3), start, self.pos, quoted, index, operator, tuple(arguments),
                bool(match.group(2)), bool(match.group(1)),
            )
        )  # fmt: skip

    def operand(self, opened: int, separator: str, *, quoted: bool) -> tuple[Part, ...]:
        """The word behind an operator in ``${…}``, up to ``}`` or the separator."""
        self.depth += 1
        try:
            if self.depth > DEEPEST:
                raise Refused("nested too deeply to follow", self.pos, sure=False)
            return self.operand_parts(opened, separator, quoted=quoted)
        finally:
            self.depth -= 1

    def operand_parts(self, opened: int, separator: str, *, quoted: bool) -> tuple[Part, ...]:
        parts: list[Part] = []
        text = self.text
        plain = _BRACE_RUN_QUOTED if quoted else _BRACE_RUN
        while True:
            if self.pos >= self.end:
                raise Refused("`${` is never closed", opened, opened + 2)
            at = self.pos
            char = text[at]
            if char in ("}", separator):
                return tuple(parts)
            run = plain.match(text, at)
            if run:
                end = run.end()
                if separator:
                    cut = text.find(separator, at, end)
                    end = cut if cut >= 0 else end
                parts.append(Literal(text[at:end], at, end, quoted))
                self.pos = end
            elif char == "\\":
                if quoted:
                    self.escape_in_double(parts, '"}')
                else:
                    self.escape(parts)
            elif char == '"':
                self.pos += 1
                self.double(parts, at)
            elif char == "'":
                self.quoted_or_expansion(parts)
            else:
                self.expansion(parts, quoted=quoted)

    def ansi(self, parts: list[Part]) -> None:  # noqa: C901 - one branch for each form
        """``$'…'``."""
        start = self.pos
        at = start + 2
        out: list[str] = []
        text = self.text
        simple = True
        while True:
            if at >= self.end:
                raise Refused("this quotation mark is never closed", start + 1)
            char = text[at]
            if char == "'":
                break
            if char != "\\":
                out.append(char)
                at += 1
                continue
            simple = False
            number = re.compile(
                r"\\(?:([0-7]{1,3})|x([0-9A-Fa-f]{1,2})|u([0-9A-Fa-f]{1,4})|U([0-9A-Fa-f]{1,8}))"
            ).match(text, at)
            following = text[at + 1 : at + 2]
            if number:
                digits, base = (
                    (number.group(1), 8)
                    if number.group(1)
                    else (number.group(2) or number.group(3) or number.group(4), 16)
                )
                code = int(digits, base) & (0xFF if base == 8 or number.group(2) else 0x7FFFFFFF)
                if (
                    code == 0
                    or code > 0x10FFFF
                    or 0xD800 <= code < 0xE000
                    or (code > 127 and not (number.group(3) or number.group(4)))
                ):
                    # A byte that is no character, or the end of the string: leave it to the unknown.
                    end = text.find("'", at)
                    if end < 0:
                        raise Refused("this quotation mark is never closed", start + 1)
                    self.pos = end + 1
                    parts.append(Substitution(start, self.pos, quoted=True, kind="$'"))
                    return
                out.append(chr(code))
                at = number.end()
            elif following in _ANSI:
                out.append(_ANSI[following])
                at += 2
            elif following == "c":
                self.pos = at + 3
                out.append(chr(ord(text[at + 2 : at + 3] or "@") & 0x1F or 1))
                at += 3
            else:
                out.append("\\" + following)
                at += 2
        self.pos = at + 1
        if simple:
            parts.append(Literal("".join(out), start + 2, at, quoted=True))
        else:
            parts.append(Literal("".join(out), start, at + 1, quoted=True, exact=False))

    # ---------------------------------------------------------------- between words

    def skip_blanks(self) -> None:
        """Blanks, continued lines and a comment."""
        text = self.text
        while self.pos < self.end:
            blank = _BLANKS.match(text, self.pos)
            if blank:
                self.pos = blank.end()
                continue
            char = text[self.pos]
            if char == "\\":
                continued = self.continuation(self.pos)
                if continued:
                    self.pos = continued
                    continue
                return
            if char == "#":
                newline = text.find("\n", self.pos)
                end = self.end if newline < 0 else newline
                self.marks.append(RawMark("comment", self.pos, end - (text[end - 1] == "\r")))
                self.pos = end
                continue
            return

    def skip_lines(self) -> None:
        """Blanks, comments and newlines, with the here-documents that begin behind a newline."""
        while True:
            self.skip_blanks()
            if self.pos >= self.end or self.text[self.pos] != "\n":
                return
            self.pos += 1
            if self.pending:
                self.read_heres()

    def look_alikes(self) -> None:
        """Marks for characters that only look like ASCII, outside quotes; and for carriage returns."""
        for match in re.compile(r"\r(?=\n)").finditer(self.text):
            self.marks.append(RawMark("carriage-return", match.start(), match.end()))
        if self.ascii:
            return
        for start, end in self.unquoted:
            for match in _LOOK_ALIKES.finditer(self.text, start, end):
                self.marks.append(RawMark("typographic", match.start(), match.end(), match.group()))
