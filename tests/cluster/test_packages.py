"""Installing packages changes nothing else of a user's Debian."""

import stat
from pathlib import Path

from cluster.packages import NO_SERVICES, without_services


def test_packages_start_no_services_while_they_are_installed_and_may_again_afterwards(tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"
    with without_services(policy):
        assert policy.read_text().endswith("exit 101\n")
        assert policy.stat().st_mode & stat.S_IXUSR
    assert not policy.exists()


def test_another_ones_policy_stays_and_what_a_killed_run_left_goes(tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 0\n")
    with without_services(policy):
        assert policy.read_text() == "#!/bin/sh\nexit 0\n"
    assert policy.exists()

    policy.write_text(NO_SERVICES)
    with without_services(policy):
        pass
    assert not policy.exists()
