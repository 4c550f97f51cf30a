"""What the project says of itself in several places, and that it is the same everywhere.

Usage: python3 test/meta_test.py
"""

import json
import pathlib
import re
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
META = json.loads((ROOT / "META.json").read_text())


def text(path):
    return (ROOT / path).read_text()


def found(pattern, path):
    """What the group of the pattern matches in a file, where it must be."""
    match = re.search(pattern, text(path), re.MULTILINE)
    assert match, f"no {pattern!r} in {path}"
    return match.group(1)


CONTROL_VERSION = found(r"^default_version = '([^']*)'$", "feishu_flow.control")


class Pgxn(unittest.TestCase):
    """META.json as https://pgxn.org/spec/ wants it."""

    def test_required_fields(self):
        for field in ("name", "abstract", "version", "maintainer", "license"):
            self.assertIsInstance(META.get(field), str, field)
            self.assertTrue(META[field].strip(), field)
        self.assertEqual(META["meta-spec"]["version"], "1.0.0")
        self.assertTrue(META["provides"])

    def test_no_unknown_fields(self):
        known = {
            "name", "abstract", "description", "version", "maintainer", "license", "provides", "prereqs", "tags",
            "generated_by", "meta-spec", "resources", "release_status", "no_index",
        }
        self.assertLessEqual({key for key in META if not key.lower().startswith("x_")}, known)

    def test_versions_are_semantic(self):
        semantic = r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)$"
        self.assertRegex(META["version"], semantic)
        for extension in META["provides"].values():
            self.assertRegex(extension["version"], semantic)

    def test_tags(self):
        self.assertEqual(len(META["tags"]), len(set(META["tags"])))
        for tag in META["tags"]:
            self.assertRegex(tag, r"^[^/\\\x00-\x1f]{1,255}$")

    def test_files_exist(self):
        for name, extension in META["provides"].items():
            self.assertTrue((ROOT / extension["file"]).is_file(), name)
            self.assertTrue((ROOT / extension["docfile"]).is_file(), name)

    def test_prerequisite_versions(self):
        for phase, relations in META["prereqs"].items():
            self.assertIn(phase, ("configure", "build", "test", "runtime", "develop"))
            for relation, packages in relations.items():
                self.assertIn(relation, ("requires", "recommends", "suggests", "conflicts"))
                self.assertEqual(packages, {"PostgreSQL": MINIMUM + ".0.0"})


class Versions(unittest.TestCase):
    """The version of the extension, and of the release: that with a third number."""

    def test_meta(self):
        self.assertEqual(META["version"].rsplit(".", 1)[0], CONTROL_VERSION)
        self.assertEqual(META["provides"], {"feishu_flow": {
            **META["provides"]["feishu_flow"],
            "file": f"feishu_flow--{CONTROL_VERSION}.sql",
            "version": META["version"],
        }})

    def test_nowhere_else(self):
        for path in ["Makefile", *(str(path.relative_to(ROOT)) for path in ROOT.glob("src/**/*.[ch]"))]:
            self.assertNotRegex(text(path), rf"(?i)(version\b.*|--|\"){re.escape(CONTROL_VERSION)}(\"|$|\.sql)", path)

    def test_changelog(self):
        release = found(r"^## (\S+)", "CHANGELOG.md")
        self.assertIn(META["version"], (release, release + ".0"))

    @unittest.skipUnless((ROOT / "debian").is_dir(), "no debian/ in a release")
    def test_debian_changelog(self):
        self.assertEqual(found(r"\A\S+ \(([^-]*)-", "debian/changelog"), META["version"])


MINIMUM = str(int(found(r"^#if PG_VERSION_NUM < (\d+)\n#error", "src/base/compat.h")) // 10000)


class Promises(unittest.TestCase):
    """What the project needs and which licence it has."""

    def test_readme(self):
        self.assertIn(f"PostgreSQL {MINIMUM} or later", text("README.md"))
        curl = int(found(r"^#if LIBCURL_VERSION_NUM < 0x(\w+)\n#error", "src/base/compat.h"), 16)
        self.assertIn(f"libcurl {curl >> 16}.{curl >> 8 & 255} or later", text("README.md"))

    def test_licence(self):
        self.assertEqual(META["license"], "postgresql")
        self.assertIn("PostgreSQL License", text("LICENSE"))

    @unittest.skipUnless((ROOT / "debian").is_dir(), "no debian/ in a release")
    def test_debian(self):
        self.assertEqual(text("debian/pgversions"), MINIMUM + "+\n")
        self.assertEqual(found(r"^Maintainer: (.*)$", "debian/control.in"), META["maintainer"])
        licence = re.sub(r"^ \.$", "", text("debian/copyright"), flags=re.MULTILINE)
        for paragraph in text("LICENSE").split("\n\n")[2:]:
            self.assertIn(" ".join(paragraph.split()), " ".join(licence.split()))

    def test_script_is_for_create_extension_only(self):
        """Read by psql, the script ends before its first statement."""
        for line in text(META["provides"]["feishu_flow"]["file"]).splitlines():
            if line.strip() and not line.startswith(("--", "/*")):
                self.assertEqual(line, r'\echo Use "CREATE EXTENSION feishu_flow" to load this file. \quit')
                break


if __name__ == "__main__":
    unittest.main()
