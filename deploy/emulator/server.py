"""How does a millisecond of the emulated robot pass: state out, answer in, one step of the plant?

One process, one thread, SCHED_FIFO where that is allowed (process.py). `lockstep`: after each state the server waits up
to 200 ms of host time for the client's answer, so the robot's clock runs slower than the host's when the host is busy,
and nothing is lost. `strict`: an answer that is not there within the millisecond is lost, as on the real robot. Neither
replays missed ticks in a burst.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from typing import Any

import numpy as np

from deploy.emulator import protocol
from deploy.emulator.connections import CONTROL_PORT, Connection, accept, datagram_socket, listen
from deploy.emulator.control import Controls
from deploy.emulator.faults import Packets
from deploy.emulator.hand import REPORT_MS
from deploy.emulator.robot import EmulatedRobot

TICK_S = 0.001
LOCKSTEP_WAIT_S = 0.2
PACINGS = ("lockstep", "strict")


class Server:
    """Sockets of one robot, and its clock."""

    def __init__(self, robot: EmulatedRobot, address: str, pacing: str) -> None:
        self.robot, self.address, self._lockstep = robot, address, pacing == "lockstep"
        ports = (protocol.ROBOT_PORT, protocol.GRIPPER_PORT, CONTROL_PORT)
        self._arm_door, self._hand_door, self._control_door = (listen(address, port) for port in ports)
        self._udp, self._hand_udp = datagram_socket(address), datagram_socket(address)
        self.client: Connection | None = None
        self._hands: dict[int, Connection] = {}
        self._controls: list[Connection] = []
        self.controls = Controls(self)
        self._states, self._commands = Packets("state", 1), Packets("command", 2)
        self._answer: Any = None  # the command record that answers the newest state
        self._waiting = False
        self.stopping = False

    def serve(self) -> None:
        """Run until `stopping`."""
        next_s = time.monotonic() + TICK_S
        while not self.stopping:
            start_s = time.monotonic()
            self._send_state()
            self._send_answers()
            sent_s = time.monotonic()
            self._listen(next_s)
            due_s = time.monotonic()
            self._pass_commands(self._commands.due(self.robot.arm.time_ms))
            self.robot.advance(self._answer)
            self.robot.timing.tick(start_s, sent_s, due_s, time.monotonic())
            if self.robot.stall_s:
                time.sleep(self.robot.stall_s)
                self.robot.stall_s = 0.0
            next_s = max(next_s + TICK_S, time.monotonic())

    def close(self) -> None:
        """Close every socket."""
        everything = [self._arm_door, self._hand_door, self._control_door, self._udp, self._hand_udp]
        for channel in [*everything, self.client, *self._hands.values(), *self._controls]:
            if channel is not None:
                channel.close()

    def drop_clients(self) -> None:
        """Close the connections of the arm's and the hand's clients."""
        if self.client is not None:
            self._drop(self.client)
        for connection in list(self._hands.values()):
            self._drop_hand(connection)

    # --- out ----------------------------------------------------------------------------------------------------------

    def _send_state(self) -> None:
        self._answer, self._waiting = None, False
        robot, client = self.robot, self.client
        now_ms = robot.arm.time_ms
        if client is not None and client.udp is not None:
            packets = self._states.due(now_ms) + self._states.send(robot.state(), robot.faults, now_ms)
            for packet in packets:
                _send_datagram(self._udp, packet, client.udp)
            robot.timing.sent()
            self._waiting = self._lockstep and bool(packets) and robot.arm.duty
        if now_ms % REPORT_MS == 0:
            report = robot.hand.report(now_ms)
            for connection in self._hands.values():
                if connection.udp is not None:
                    _send_datagram(self._hand_udp, report, connection.udp)

    def _send_answers(self) -> None:
        arm, hand = self.robot.arm, self.robot.hand
        while arm.replies:
            number, command_id, payload = arm.replies.popleft()
            if self.client is not None:
                self.client.answer(protocol.HEADER, number, command_id, payload)
        while hand.replies:
            key, number, command_id, payload = hand.replies.popleft()
            if key in self._hands:
                self._hands[key].answer(protocol.GRIPPER_HEADER, number, command_id, payload)

    # --- in -----------------------------------------------------------------------------------------------------------

    def _listen(self, next_s: float) -> None:
        """Serve the sockets until the tick is due, and in lockstep until the client has answered."""
        latest_s = time.monotonic() + LOCKSTEP_WAIT_S
        while True:
            now_s = time.monotonic()
            until_s = latest_s if self._waiting else next_s
            # select, not epoll: epoll rounds its timeout up to whole milliseconds.
            ready, _, _ = select.select(self._channels(), [], [], max(0.0, until_s - now_s))
            for channel in ready:
                self._serve_channel(channel)
            now_s = time.monotonic()
            if now_s >= next_s and (not self._waiting or now_s >= latest_s or self.stopping):
                return

    def _channels(self) -> list[Any]:
        fixed = [self._udp, self._arm_door, self._hand_door, self._control_door]
        client = [] if self.client is None else [self.client]
        return [*fixed, *client, *self._hands.values(), *self._controls]

    def _serve_channel(self, channel: Any) -> None:
        if channel is self._udp:
            self._read_commands()
        elif channel is self._arm_door:
            self._accept_client()
        elif channel is self._hand_door:
            connection = accept(self._hand_door)
            self._hands[id(connection)] = connection
        elif channel is self._control_door:
            self._controls.append(accept(self._control_door))
        elif self.client is not None and channel is self.client:
            self._serve_client(channel)
        elif channel in self._controls:
            self._serve_control(channel)
        elif id(channel) in self._hands:
            self._serve_hand(channel)

    def _read_commands(self) -> None:
        while True:
            try:
                packet = self._udp.recv(2048)
            except BlockingIOError:
                return
            except OSError:  # a client that has gone
                continue
            robot = self.robot
            if self._is_newest(packet):
                robot.timing.answered()
                self._waiting = False  # whatever a fault makes of it now
            self._pass_commands(self._commands.send(packet, robot.faults, robot.arm.time_ms))

    def _is_newest(self, packet: bytes) -> bool:
        return int.from_bytes(packet[:8], "little") == self.robot.arm.time_ms

    def _pass_commands(self, packets: list[bytes]) -> None:
        arm = self.robot.arm
        for packet in packets:
            if len(packet) != arm.version.command.itemsize:
                self.robot.events.add("bad_command", bytes=len(packet))
                continue
            record = np.frombuffer(packet, arm.version.command, 1)[0]
            motion = arm.motion
            # An asynchronous motion takes commands whenever they come; else only the newest state's answer counts.
            if self._is_newest(packet) or (motion is not None and motion.asynchronous):
                self._answer = record

    def _accept_client(self) -> None:
        connection = accept(self._arm_door)
        if self.client is not None:
            self.robot.events.add("client_refused", reason="another client is connected")
            connection.close()
            return
        self.client = connection
        self.robot.events.add("client", host=connection.host)

    def _serve_client(self, connection: Connection) -> None:
        alive = connection.read()
        try:
            for number, command_id, payload in connection.messages(protocol.HEADER):
                if self.robot.arm.version.named(number) is protocol.Command.CONNECT:
                    answer: bytes | None = self._connect(connection, payload)
                else:
                    answer = self.robot.request(number, command_id, payload)
                if answer is not None:
                    connection.answer(protocol.HEADER, number, command_id, answer)
        except ValueError as error:
            self.robot.events.add("bad_request", reason=str(error))
            alive = False
        if not alive:
            self._drop(connection)

    def _connect(self, connection: Connection, payload: bytes) -> bytes:
        request = np.frombuffer(payload, protocol.CONNECT, 1)[0]
        speaks = self.robot.spoken_version or self.robot.arm.version.number
        asked = int(request["version"])
        same = asked == speaks
        self.robot.events.add("connect", version=asked, accepted=same)
        if same:
            connection.udp = (connection.host, int(request["udp_port"]))
        status = protocol.SUCCESS if same else protocol.INCOMPATIBLE_VERSION
        return bytes([status]) + speaks.to_bytes(2, "little")

    def _drop(self, connection: Connection) -> None:
        connection.close()
        self.client, self._waiting = None, False
        self.robot.events.add("client_gone")
        self.robot.arm.client_lost()

    def _serve_hand(self, connection: Connection) -> None:
        alive = connection.read()
        try:
            for number, command_id, payload in connection.messages(protocol.GRIPPER_HEADER):
                if number == protocol.GripperCommand.CONNECT:
                    version, port = (int(value) for value in np.frombuffer(payload, protocol.CONNECT, 1)[0])
                    same = version == protocol.GRIPPER_VERSION
                    connection.udp = (connection.host, port) if same else None
                    answer = int(not same).to_bytes(2, "little") + protocol.GRIPPER_VERSION.to_bytes(2, "little")
                    connection.answer(protocol.GRIPPER_HEADER, number, command_id, answer)
                else:
                    self.robot.hand.request(id(connection), number, command_id, payload)
        except ValueError as error:
            self.robot.events.add("bad_request", reason=str(error))
            alive = False
        if not alive:
            self._drop_hand(connection)

    def _drop_hand(self, connection: Connection) -> None:
        connection.close()
        self._hands.pop(id(connection), None)
        self.robot.hand.drop(id(connection))

    def _serve_control(self, connection: Connection) -> None:
        if not connection.read():
            connection.close()
            self._controls.remove(connection)
            return
        for answer in self.controls.answers(connection):
            connection.send(answer)


def _send_datagram(channel: socket.socket, packet: bytes, to: tuple[str, int]) -> None:
    with contextlib.suppress(OSError):  # a full buffer or a client that has gone: lost, as on a wire
        channel.sendto(packet, to)
