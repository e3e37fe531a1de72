# SPDX-License-Identifier: Apache-2.0
import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))
import world  # noqa: E402


def lab_fixture(nodes):
    @pytest.fixture(scope="module")
    def made():
        with world.Lab(nodes) as lab:
            yield lab
    return made


lab1 = lab_fixture(1)
lab3 = lab_fixture(3)
lab4 = lab_fixture(4)


@pytest.fixture
def fresh_lab():
    """Labs of a test's own, for those that break them: fresh_lab(3)."""
    labs = []

    def make(nodes, **options):
        lab = world.Lab(nodes, **options)
        labs.append(lab)
        return lab.__enter__()

    yield make
    for lab in labs:
        lab.__exit__()
