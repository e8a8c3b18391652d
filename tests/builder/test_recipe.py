"""Recipes: what they may say, and what is reported when they say something else."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from polyvisor.builder.builtin import RECIPE
from polyvisor.builder.recipe import File, Recipe, User, read_recipe
from polyvisor.cli.main import make_app
from polyvisor.cli.recipes import recipe_from
from polyvisor.images import ImageError

EVERYTHING = """
name = "debian:web"
suite = ["sid", "trixie"]
base = "essential"
packages = ["nginx-light", "python3 (>= 3.13)"]
exclude = ["nano"]
size = "512M"
hostname = "web.example"
root_password = false
run = ["systemctl enable nginx", "echo a b > /etc/motd"]
mirror = "http://mirror.example/debian"
init = "/usr/sbin/start"
append = "systemd.show_status=1"

[[user]]
name = "dev"
password = "secret"
groups = ["sudo", "adm"]
shell = "/bin/sh"

[[file]]
source = "index.html"
target = "/var/www/html/index.html"

[[file]]
text = "#!/bin/sh\\n"
target = "/usr/local/bin/x"
mode = "755"
"""


def write(directory: Path, text: str, name: str = "web.toml") -> Path:
    path = directory / name
    path.write_text(text)
    return path


def test_a_recipe_says_all_of_this(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("hello")
    recipe = read_recipe(write(tmp_path, EVERYTHING))
    assert recipe == Recipe(
        name="debian:web",
        base="essential",
        packages=("nginx-light", "python3 (>= 3.13)"),
        exclude=("nano",),
        suites=("sid", "trixie"),
        size=512 << 20,
        hostname="web.example",
        root_password=None,
        users=(User("dev", "secret", ("sudo", "adm"), "/bin/sh"),),
        files=(
            File("/var/www/html/index.html", source=tmp_path / "index.html"),
            File("/usr/local/bin/x", text="#!/bin/sh\n", mode=0o755),
        ),
        run=("systemctl enable nginx", "echo a b > /etc/motd"),
        mirror="http://mirror.example/debian",
        init="/usr/sbin/start",
        append="systemd.show_status=1",
    )


def test_an_empty_recipe_is_a_small_debian_called_after_its_file(tmp_path: Path) -> None:
    assert read_recipe(write(tmp_path, "", "mine.toml")) == Recipe("mine")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "is not TOML"),
        ("name = 'A B'", "'A B' is not a name for an image"),
        ("nmae = 'x'", "there is no key 'nmae'"),
        ("packages = 'x'", "packages: 'x' is not a list"),
        ("packages = [5]", "packages: 5 is not a string"),
        ("packages = ['a b']", "package 'a b': give a name, or a relation"),
        ("exclude = ['']", "package '': give a name"),
        ("base = 'all'", "base 'all': there are required, essential, none"),
        ("suite = []", "suites: name at least one"),
        ("suite = '../x'", "'../x' is not the name of a suite"),
        ("size = 'big'", "size 'big' is not a size"),
        ("size = '1M'", "give 16M to 1T"),
        ("size = 5", "size: 5 is not a string"),
        ("hostname = 'a b'", "'a b' is not a name for a host"),
        ("root_password = true", "root_password: give the password"),
        ('root_password = "a\\nb"', "root_password has control characters"),
        ("[user]\nname = 'x'", "user: .* is not a list"),
        ("user = ['x']", r"user: write \[\[user\]\]"),
        ("[[user]]", "user 1: name is missing"),
        ("[[user]]\nname = 'x'\n[[user]]\nname = 'x'", "user 'x' is there twice"),
        ("[[user]]\nname = 'root'", "user root is there already"),
        ("[[user]]\nname = 'x y'", "'x y' is not a name for a user"),
        ("[[user]]\nname = 'x'\nuid = 5", "user 1: there is no key 'uid'"),
        ("[[user]]\nname = 'x'\ngroups = ['a b']", "group 'a b' of user x"),
        ("[[user]]\nname = 'x'\nshell = 'sh -l'", "shell 'sh -l' is not an absolute path"),
        ("[[file]]\ntext = ''", "file 1: target is missing"),
        ("[[file]]\ntarget = 'etc/x'\ntext = ''", "'etc/x' is not an absolute path"),
        ("[[file]]\ntarget = '/etc/../x'\ntext = ''", "is not an absolute path"),
        ("[[file]]\ntarget = '/etc/'\ntext = ''", "is not an absolute path"),
        ("[[file]]\ntarget = '/run/x'\ntext = ''", "what is in /run is not on the disk"),
        ("[[file]]\ntarget = '/x'", "give either source or text"),
        ("[[file]]\ntarget = '/x'\ntext = ''\nmode = '999'", "mode '999' is not one"),
        ("init = 'x'", "init 'x' is not an absolute path"),
    ],
)
def test_what_no_recipe_can_say_is_reported(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ImageError, match=message) as caught:
        read_recipe(path)
    assert caught.value.kind == "usage" and str(path) in str(caught.value)


def test_a_source_that_is_not_there_is_reported(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, "[[file]]\nsource = 'no'\ntarget = '/x'"))
    with pytest.raises(ImageError, match="no of the recipe: No such file"):
        recipe.identity()
    with pytest.raises(ImageError, match="No such file"):
        read_recipe(tmp_path / "nothing.toml")


def test_the_identity_depends_on_what_files_hold(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one")
    recipe = Recipe("x", files=(File("/a", source=tmp_path / "a"),))
    first = recipe.identity()
    elsewhere = Recipe("x", files=(File("/a", text="one"),))
    assert elsewhere.identity() == first, "where a file comes from does not matter"
    (tmp_path / "a").write_text("two")
    assert recipe.identity() != first


def options(target: str, **changes: object) -> Recipe:
    none: dict[str, object] = {
        "suites": (), "include": (), "exclude": (), "base": None, "size": None, "files": (), "commands": (),
        "users": (), "hostname": None,
    }
    return recipe_from(target, **{**none, **changes})  # type: ignore[arg-type]


def test_options_make_a_recipe_or_add_to_one(tmp_path: Path) -> None:
    script = tmp_path / "x"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    recipe = options(
        "mine:1", suites=["trixie,sid"], include=["python3,perl", "nano"], exclude=["vim"], base="essential",
        size="64M", files=[f"{script}:/usr/bin/x"], commands=["true"], users=["dev"], hostname="h",
    )
    assert recipe == Recipe(
        "mine:1", "essential", ("python3", "perl", "nano"), ("vim",), ("trixie", "sid"), 64 << 20, "h", "",
        (User("dev"),), (File("/usr/bin/x", source=script, mode=0o755),), ("true",),
    )
    full = options("debian:full", include=["gcc"], size="4G")
    assert full.packages == (*RECIPE.packages, "gcc") and full.size == 4 << 30 and full.users == RECIPE.users
    path = write(tmp_path, "packages = ['nano']")
    assert options(str(path), include=["perl"]).packages == ("nano", "perl")
    assert options("debian:full") == RECIPE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.toml"], "nothing.toml: No such file"),
        (["Bad"], "'Bad' is not a name for an image"),
        (["x" * 300], "File name too long"),
        (["debian"], "polyvisor image pull debian"),
        (["x", "--size", "much"], "'much' is not a size"),
        (["x", "--file", "a"], "give HOSTFILE:/PATH/IN/GUEST"),
        (["x", "--file", "a:b"], "file target 'b' is not an absolute path"),
        (["x", "--user", "A"], "'A' is not a name for a user"),
        (["x", "--mirror", "ftp://x/debian"], "is not an http or https URL"),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(make_app(()), ["image", "build", *arguments])
    assert result.exit_code == 1 and message in result.stderr and len(result.stderr.splitlines()) == 1
