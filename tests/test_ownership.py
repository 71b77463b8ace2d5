"""A client library, a configuration and directories that other users may change."""

import logging
import os
import pwd
import shutil

import pytest
from support import ANOTHER_USER, GIVES_FILES_AWAY

import luna_ext
from luna_ext import ownership
from luna_ext.info import CLUSTER_FUNCTIONS
from luna_ext.stub import library_path


@pytest.fixture
def client(old_client, tmp_path, monkeypatch):
    """A client library, two directories deep; a test lets others change it."""
    monkeypatch.setenv("ChrystokiConfigurationPath", str(tmp_path / "none"))
    library = tmp_path / "opt" / "lib" / "client.so"
    library.parent.mkdir(parents=True, mode=0o755)
    shutil.copy(old_client(*CLUSTER_FUNCTIONS), library)
    for path in (library, library.parent, library.parents[1]):
        path.chmod(0o755)
    return library


def said(library):
    return [
        (weakness.path, weakness.says) for weakness in ownership.weaknesses_of_client(str(library))
    ]


def test_nothing_is_said_where_no_other_user_may_change_it(client):
    assert said(client) == []


def test_where_others_may_put_a_configuration(client, tmp_path, monkeypatch):
    directory = tmp_path / "etc"
    directory.mkdir()
    directory.chmod(0o777)
    monkeypatch.setenv("ChrystokiConfigurationPath", str(directory))
    says = "is writable by all users (mode 0777)"
    assert said(client) == [(str(directory), says)]
    (directory / "Chrystoki.conf").touch(0o644)
    assert said(client) == [(str(directory), says)]


def test_nothing_is_said_where_files_have_no_owners(client, monkeypatch):
    """Windows has no user IDs."""
    client.chmod(0o777)
    monkeypatch.delattr(os, "geteuid")
    assert said(client) == []


@GIVES_FILES_AWAY
def test_a_group_without_other_members(client):
    client.chmod(0o775)
    assert said(client) == []


@pytest.mark.parametrize(
    ("of", "mode", "says"),
    [
        (0, 0o666, "is writable by all users (mode 0666)"),
        (0, 0o1666, "is writable by all users (mode 1666)"),
        (1, 0o777, "is writable by all users (mode 0777)"),
        (2, 0o757, "is writable by all users (mode 0757)"),
    ],
)
def test_what_all_users_may_write_to(client, of, mode, says):
    path = (client, *client.parents)[of]
    path.chmod(mode)
    assert said(client) == [(str(path), says)]
    (weakness,) = ownership.weaknesses_of_client(str(client))
    assert weakness.advice == f"chmod go-w {path}"


def test_in_a_sticky_directory_others_change_only_what_they_own(client):
    client.parent.chmod(0o1777)
    assert said(client) == []


@GIVES_FILES_AWAY
@pytest.mark.parametrize("of", range(3))
def test_what_belongs_to_another_user(client, of):
    path = (client, *client.parents)[of]
    os.chown(path, ANOTHER_USER, 0)
    assert said(client) == [(str(path), f"belongs to the user with the UID {ANOTHER_USER}")]


@GIVES_FILES_AWAY
def test_what_the_members_of_a_group_may_write_to(client):
    os.chown(client, 0, ANOTHER_USER)
    assert said(client) == []
    client.chmod(0o775)
    says = f"is writable by the group with the GID {ANOTHER_USER} (mode 0775)"
    assert said(client) == [(str(client), says)]


@GIVES_FILES_AWAY
def test_a_group_that_is_the_first_one_of_another_user(client):
    """Its list of members does not have that user."""
    nobody = pwd.getpwnam("nobody")
    os.chown(client, 0, nobody.pw_gid)
    client.chmod(0o775)
    ((path, says),) = said(client)
    assert path == str(client)
    assert f"(GID {nobody.pw_gid})" in says


@pytest.mark.parametrize("target", ["../opt/./lib", "{absolute}", "again"])
def test_the_way_of_a_link_is_looked_at_as_well(client, tmp_path, target):
    """The link, what leads to it, and what leads to its target."""
    links = tmp_path / "links"
    links.mkdir(mode=0o755)
    (links / "again").symlink_to(client.parent)
    (links / "link").symlink_to(target.format(absolute=client.parent))
    assert said(links / "link" / "client.so") == []
    links.chmod(0o777)
    client.parent.chmod(0o777)
    weak = [path for path, _ in said(links / "link" / "client.so")]
    assert weak == [str(links), str(client.parent)]


@GIVES_FILES_AWAY
def test_a_link_of_another_user(client, tmp_path):
    links = tmp_path / "shared"
    links.mkdir()
    links.chmod(0o1777)
    link = links / "client.so"
    link.symlink_to(client)
    os.lchown(link, ANOTHER_USER, ANOTHER_USER)
    assert said(link) == [(str(link), f"belongs to the user with the UID {ANOTHER_USER}")]


def test_as_many_links_as_linux_follows_are_looked_at(client, tmp_path):
    links = tmp_path / "links"
    links.mkdir(mode=0o755)
    path = client
    for number in range(40):
        link = links / str(number)
        link.symlink_to(path)
        path = link
    assert path.samefile(client)
    client.chmod(0o777)
    assert said(path) == [(str(client), "is writable by all users (mode 0777)")]


def test_links_that_lead_nowhere(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert said(tmp_path / "a" / "client.so") == []


def test_the_configuration_is_looked_at_as_well(client, tmp_path, monkeypatch):
    monkeypatch.setenv("ChrystokiConfigurationPath", str(tmp_path))
    configuration = tmp_path / "Chrystoki.conf"
    configuration.write_text("Misc = {}\n")
    configuration.chmod(0o644)
    assert said(client) == []
    configuration.chmod(0o666)
    assert said(client) == [(str(configuration), "is writable by all users (mode 0666)")]


def test_the_stand_in_of_this_package_is_as_safe_as_the_package(monkeypatch):
    monkeypatch.setattr(ownership, "_weaknesses", lambda path: 1 / 0)
    assert said(library_path()) == []


def test_a_library_that_others_may_change_is_told_once(cluster, client, caplog, monkeypatch):
    monkeypatch.setenv("LUNA_STUB_STATE", cluster.path)
    client.parent.chmod(0o777)
    with caplog.at_level(logging.WARNING, "luna_ext"):
        for _ in range(2):
            luna_ext.Library(client).close()
    (record,) = (record for record in caplog.records if "other users" in record.getMessage())
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        f"other users may change what this process loads: {client.parent} is writable by all users (mode "
        "0777). A user who does gets its PINs and the use of its keys. What to do: "
        f"chmod go-w {client.parent}"
    )
