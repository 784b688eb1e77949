"""A user of aardwolf: shows what the target draws and types what it is told to.

usage: aardwolf_client.py HOST PORT USER PASSWORD PICTURE

PICTURE.ppm is the screen, written again whenever it has changed, and PICTURE.png when the client ends. The content of
PICTURE.type is typed, followed by Enter, again and again while the file is there.
"""

import asyncio
import os
import signal
import sys

from aardwolf.commons.iosettings import RDPIOSettings
from aardwolf.commons.queuedata.constants import MOUSEBUTTON
from aardwolf.commons.target import RDPTarget
from aardwolf.connection import RDPConnection
from aardwolf.protocol.pdu.capabilities.bitmapcache import TS_BITMAPCACHE_CAPABILITYSET
from aardwolf.protocol.T128.inputeventpdu import TS_SHAREDATAHEADER
from asyauth.common.constants import asyauthSecret
from asyauth.common.credentials.ntlm import NTLMCredential

ROWS = [(2, "1234567890-="), (16, "qwertyuiop[]"), (30, "asdfghjkl;'"), (44, "zxcvbnm,./")]
SCANCODES = {key: first + at for first, row in ROWS for at, key in enumerate(row)}
SHIFTED = dict(zip('!@#$%^&*()_+{}:"<>?', "1234567890-=[];',./"))
SPACE, ENTER, SHIFT = 57, 28, 42


# Its own is 30 bytes longer than it says; no caches at all is what it means.
TS_BITMAPCACHE_CAPABILITYSET.to_bytes = lambda _: bytes(36)
# totalLength is that of the Share Control Header and all behind it; aardwolf counts the former twice.
data_header = TS_SHAREDATAHEADER.to_bytes


def counted_once(header):
    header.shareControlHeader.totalLength -= 6
    return data_header(header)


TS_SHAREDATAHEADER.to_bytes = counted_once


class Connection(RDPConnection):
    """What Windows forgives and the servers here do not."""

    async def _RDPConnection__erect_domain(self):
        # [MS-RDPBCGR] 4.1.5; aardwolf sends 04 00 01 00 01, a byte more than the two integers.
        await self._x224net.write(bytes.fromhex("0401000100"))
        return True, None

    async def _RDPConnection__attach_user(self):
        result = await super()._RDPConnection__attach_user()
        if self._initiator is not None:
            # [MS-RDPBCGR] 1.3.1.1: the user channel is joined, too; aardwolf leaves it out.
            join = {"initiator": self._initiator, "channelId": 1001 + self._initiator}
            request = self._t125_per_codec.encode("DomainMCSPDU", ("channelJoinRequest", join))
            await self._x224net.write(bytes(request))
            await self._x224net.read()
        return result


def strokes(text):
    for key in text:
        if key == " ":
            yield SPACE, False
        else:
            base = SHIFTED.get(key, key.lower())
            yield SCANCODES[base], base != key
    yield ENTER, False


async def press(connection, scancode, shift):
    if shift:
        await connection.send_key_scancode(SHIFT, True, False)
    await connection.send_key_scancode(scancode, True, False)
    await connection.send_key_scancode(scancode, False, False)
    if shift:
        await connection.send_key_scancode(SHIFT, False, False)


async def main():
    host, port, user, password, picture = sys.argv[1:]
    settings = RDPIOSettings()
    settings.video_width, settings.video_height = 1024, 768
    settings.video_bpp_min, settings.video_bpp_max = 15, 32
    settings.clipboard_use_pyperclip = False
    target = RDPTarget(ip=host, port=int(port), timeout=20, unsafe_ssl=True)
    credential = NTLMCredential(password, user, None, asyauthSecret.PASSWORD)
    connection = Connection(target, credential, settings)
    _, error = await connection.connect()
    if error is not None:
        raise error
    print("connected", connection.x224_protocol, flush=True)

    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    shown, rest = None, 0
    while not ended.is_set() and not connection.disconnected_evt.is_set():
        image = connection.get_desktop_buffer().convert("RGB")
        data = image.tobytes()
        if data != shown:
            image.save(picture + ".new", "PPM")
            os.replace(picture + ".new", picture + ".ppm")
            shown = data
        rest -= 1
        if rest < 0 and os.path.exists(picture + ".type"):
            # Nothing manages windows there: the keys go where the pointer is, the terminal of the desktop.
            await connection.send_mouse(MOUSEBUTTON.MOUSEBUTTON_HOVER, 200, 200, True)
            with open(picture + ".type", encoding="utf-8") as text:
                for scancode, shift in strokes(text.read()):
                    await press(connection, scancode, shift)
            rest = 20
        await asyncio.sleep(0.05)
    connection.get_desktop_buffer().save(picture + ".png", "PNG")
    await connection.terminate()


asyncio.run(main())
