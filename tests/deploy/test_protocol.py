"""Do our layouts have the sizes that libfranka's packed structs have?"""

import numpy as np
import pytest

from deploy.emulator import protocol

# sizeof of the structs in libfranka-common's headers; protocol 10 is 1377 and 371 bytes on the wire, 5 is 2373 and 370.
SIZES = {
    "state 10": (protocol.V10.state, 8 + 321 * 4 + 2 + 41 + 41 + 1),
    "state 5": (protocol.V5.state, 8 + 285 * 8 + 2 + 41 + 41 + 1),
    "command 10": (protocol.V10.command, 371),
    "command 5": (protocol.V5.command, 370),
    "move 10": (protocol.V10.move, 113),
    "move 5": (protocol.V5.move, 56),
    "collision": (protocol.COLLISION, 416),
    "load": (protocol.LOAD, 104),
    "header": (protocol.HEADER, 12),
    "gripper header": (protocol.GRIPPER_HEADER, 10),
    "gripper state": (protocol.GRIPPER_STATE, 23),
    "grasp": (protocol.GRASP, 40),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_of_the_packed_structs(name: str) -> None:
    dtype, size = SIZES[name]
    assert dtype.itemsize == size


def test_wire_sizes_of_the_states() -> None:
    assert protocol.V10.state.itemsize == 1377
    assert protocol.V5.state.itemsize == 2373


def test_numbers_of_requests_and_answers_differ_between_versions() -> None:
    command, status = protocol.Command, protocol.MoveStatus
    assert protocol.V10.commands.index(command.AUTOMATIC_ERROR_RECOVERY) == 10
    assert protocol.V10.commands.index(command.GET_ROBOT_MODEL) == 11
    assert protocol.V5.commands.index(command.AUTOMATIC_ERROR_RECOVERY) == 12
    assert protocol.V5.commands.index(command.LOAD_MODEL_LIBRARY) == 13
    assert [protocol.V10.status_byte(status.REFLEX_ABORTED), protocol.V5.status_byte(status.REFLEX_ABORTED)] == [
        b"\x08",
        b"\x06",
    ]
    assert protocol.V10.status_byte(status.ABORTED) == b"\x0b"
    assert protocol.V5.status_byte(status.ABORTED) == b"\x09"


def test_fields_stand_where_the_header_puts_them() -> None:
    fields = protocol.V10.state.fields
    assert fields is not None
    assert fields["O_T_EE"][1] == 8
    # 6 poses, EE and load inertias, 2 elbows before tau_J; q is the fourth of the joint vectors.
    assert fields["q"][1] == 8 + 4 * (96 + 13 + 13 + 4 + 3 * 7)
    assert fields["control_command_success_rate"][1] == 1377 - 4
    assert np.zeros(1, protocol.V10.state)["errors"].shape == (1, len(protocol.ERRORS))
    assert len(protocol.ERRORS) == 41
