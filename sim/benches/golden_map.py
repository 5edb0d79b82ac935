"""What the register file has to do, in plain Python: the model that its bench checks it against."""

from __future__ import annotations

from collections import Counter

from thermokron.rtl.regmap import Register, RegisterMap

__all__ = ["GoldenMap"]


class GoldenMap:
    """What the register file has to do, one access at a time, in plain Python."""

    def __init__(self, regmap: RegisterMap) -> None:
        self.map = regmap
        self.config = {n: f.reset for n, f in regmap.fields.items() if f.access == "config"}
        self.status = {n: 0 for n, f in regmap.fields.items() if f.access == "status"}
        self.memory = {name: [0] * w.words for name, w in regmap.windows.items()}
        self.locked = dict.fromkeys(regmap.windows, 0)
        self.start_refused = 0
        self.pulses: Counter[str] = Counter()

    def write(self, address: int, data: int, strobe: int = 0xF) -> bool:
        """Do the write; whether it is refused."""
        busy = self.status["status_busy"]
        if strobe != 0xF:
            return strobe != 0
        for window in self.map.windows.values():
            word = (address - window.address) // 4
            if 0 <= word < window.words:
                if not window.writable or self.locked[window.name]:
                    return True
                self.memory[window.name][word] = data
                return False
        register = self._at(address)
        if register is None or not register.writable:
            return True
        values = register.unpack(data)
        if register.name == "control":
            wanted = [name for name in ("start", "abort", "clear") if values[name]]
            if len(wanted) > 1 or (busy and wanted and wanted != ["abort"]):
                return True
            self.pulses.update(f"control_{name}" for name in wanted)
            return wanted == ["start"] and bool(self.start_refused)
        if busy:
            return True
        for name, field in register.fields.items():
            self.config[field.port] = values[name]
        return False

    def read(self, address: int) -> int | None:
        """The word at an address, or None if the read is refused."""
        for window in self.map.windows.values():
            word = (address - window.address) // 4
            if 0 <= word < window.words:
                busy = self.status["status_busy"]
                return None if busy else self.memory[window.name][word]
        register = self._at(address)
        if register is None:
            return None
        content = 0
        for field in register.fields.values():
            value = {"constant": field.reset, "pulse": 0}.get(field.access)
            if value is None:
                value = {**self.config, **self.status}[field.port]
            content |= value << field.lsb
        return content >> (8 * (address - register.address)) & 0xFFFF_FFFF

    def _at(self, address: int) -> Register | None:
        for register in self.map.registers.values():
            if register.address <= address < register.address + 4 * register.words:
                return register
        return None
