// Plays a unit's surroundings, bus, streams, DACs and ADCs, clock edge by clock edge.
//
// One text for every way of running the RTL. What differs is how a pin is reached, which the
// template's argument says (`Pins`): a member of a class that CXXRTL or Verilator has generated,
// or a handle of VPI. Python is asked for nothing but blocks of samples: it gives a command, lets
// the clock run until there is an event, and answers that.
//
// A clock cycle is: rising edge; outputs settle; `after_edge` looks at them, and sets the inputs
// that the next edge will see. The unit's outputs are functions of its registers alone, so what
// an edge sees of them is what stood after the edge before.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "dacs.h"
#include "pins.h"
#include "streams.h"

namespace thermokron {

// What there is to say after an edge. After RELEASED and NEEDED, once answered, the command goes on.
enum Event : int {
    NONE = 0,
    DONE = 1,      // the command has been executed
    RELEASED = 2,  // the array was let go, and not as presumed: what are its samples?
    NEEDED = 3,    // a sample is due, and there is none left
    FAILED = 4,    // the unit drove its converter pins as it must not: `error`
    SILENT = 5,    // the bus gave no answer, or nobody took what a stream offers
};

constexpr uint64_t PATIENCE = 64;     // clock cycles without an answer of the bus
constexpr uint64_t RESET_CYCLES = 2;  // for which reset is held
constexpr uint64_t NEVER = ~uint64_t{0};

template <class Pins>
class Player {
public:
    Player(Pins& pins, const Sizes& sizes)
        : sizes(sizes), dacs(pins, sizes), streams(pins, sizes), pins(pins),
          packed((sizes.cells * sizes.adc_bits + 31) / 32 + 1) {}

    const Sizes sizes;
    uint64_t cycle = 0;    // rising edges so far
    uint64_t stream = 0;   // number of the next discharge
    int64_t refused = -1;  // address of the first access of a command that met SLVERR, or silence
    std::string error;
    Dacs<Pins> dacs;
    Streams<Pins> streams;

    // What the last edge, or the last call, has brought.
    Event event() const { return asks != NONE ? asks : outcome; }

    // ---- commands: under way until the event is DONE, FAILED or SILENT ---------------------------

    void write(uint32_t address, const uint32_t* words, uint64_t count) {
        begin(WRITE);
        given.assign(words, words + count);
        for (uint64_t i = 0; i < count; ++i) addresses.push_back(address + uint32_t(4 * i));
        offer();
    }

    // `ranges` are pairs, a byte address and a count of words.
    void read(const uint32_t* ranges, uint64_t count, uint32_t* into) {
        begin(READ);
        for (uint64_t i = 0; i < count; ++i)
            for (uint32_t word = 0; word < ranges[2 * i + 1]; ++word)
                addresses.push_back(ranges[2 * i] + 4 * word);
        results = into;
        offer();
    }

    // Lets time pass until the interrupt line is high, or so many cycles have passed.
    void wait(uint64_t cycles) {
        begin(WAIT);
        left = cycles;
        if (!left || pins.outputs().irq) finish(DONE);
    }

    // Lets time pass until a stream has nothing left.
    void deliver(uint32_t stream) {
        begin(DELIVER);
        watched = stream;
        if (streams.empty(watched)) finish(DONE);
    }

    // Drops the packets that have not begun, lets the unit take those that have, and the biases of a
    // run that failed before they came, which it waits for to drop them; forgets what has come.
    void flush() {
        begin(FLUSH);
        streams.drop_unbegun(was.biases_tready);
        if (!sizes.stream_bits) finish(DONE);
    }

    // Resets the unit and its surroundings; the DACs hold what they held.
    void reset() {
        begin(RESET);
        left = RESET_CYCLES + 1;
        asks = NONE;
        error.clear();
        pins.rst(true);
        pins.awvalid(false);
        pins.wvalid(false);
        pins.arvalid(false);
        pins.wstrb(0xf);
        pins.bready(true);  // responses are always welcome
        pins.rready(true);
        drdy(false);
        dacs.set_ready(true, true);
        streams.clear();
        answers_at = NEVER;
        hold();
    }

    // ---- the array --------------------------------------------------------------------------------

    // Announces the grid of the next run, and the number of its first discharge.
    void expect(uint64_t settle_cycles, uint64_t interval_cycles, uint64_t first_stream) {
        settle = settle_cycles;
        interval = interval_cycles;
        stream = first_stream;
        expected = true;
        presumed = {};
        dacs.forget();
    }

    // The samples of discharges to come, if the DACs then hold what is said here. The memory is
    // the caller's, until the next `expect`.
    struct Presumed {
        uint64_t vectors = 0, samples = 0, temperature = 0;
        const int32_t *couplings = nullptr, *biases = nullptr, *codes = nullptr;
        const double* voltages = nullptr;
    };

    void presume(const Presumed& those) {
        presumed = those;
        presumed_from = stream;
    }

    // More samples of this discharge. The memory is the caller's, until they are used.
    void supply(uint64_t samples, const int32_t* codes, const double* voltages) {
        available = samples;
        next_codes = codes;
        next_voltages = voltages;
        if (asks == NEEDED && available) convert();
        asks = NONE;
    }

    // From which sample on DRDY does not rise, or does not fall, -1 for never; by how many cycles
    // it is late at most, or before CONVST; how probable it is in a cycle that it is wrong, that a
    // DAC is not ready, or that a stream has no data or does not take any.
    struct Flaws {
        int64_t silent_from = -1, stuck_from = -1;
        uint64_t latency_cycles = 0, early_cycles = 0, seed = 0;
        double glitch = 0.0, stall = 0.0, stream_stall = 0.0;
    };

    void misbehave(const Flaws& those) {
        flaws = those;
        glitches.state = flaws.seed ^ 0x676c69746368;  // "glitch": draws of their own
        drdy(ready);
        dacs.misbehave(flaws.stall, flaws.seed);
        streams.misbehave(flaws.stream_stall, flaws.seed);
    }

    // ---- time ----------------------------------------------------------------------------------------

    void after_edge() {
        ++cycle;
        const Outputs now = pins.outputs();
        streams.after_edge(was);
        switch (command) {
            case IDLE: break;
            case WRITE: after_write(); break;
            case READ: after_read(); break;
            case WAIT: if (!--left || now.irq) finish(DONE); break;
            case DELIVER: after_delivery(); break;
            case FLUSH: after_flush(now.results_tvalid); break;
            case RESET: after_reset(); break;
        }
        if (asks != FAILED) {
            if (!dacs.after_edge(was)) fail(dacs.error);
            if (command == RESET) dacs.start_vector();
            if (now.discharge != was.discharge) now.discharge ? hold() : release(now.convst);
            if (now.convst != was.convst) now.convst ? strobe() : let_go();
            if (cycle == answers_at && now.convst) drdy(true);  // else it was given up
            if (flaws.early_cycles && cycle + flaws.early_cycles == due) drdy(true);
            if (flaws.glitch > 0.0) pins.drdy(ready != glitches.happens(flaws.glitch));
        }
        dacs.look(now);
        streams.look(now);
        was = now;
    }

private:
    enum Command { IDLE, WRITE, READ, WAIT, DELIVER, FLUSH, RESET };

    void begin(Command next) {
        command = next;
        outcome = NONE;
        refused = -1;
        offered = answers = quiet = 0;
        streams.begin_waiting();
        given.clear();
        addresses.clear();
    }

    void finish(Event how) {
        command = IDLE;
        outcome = how;
    }

    void fail(const std::string& what) {
        char at[64];
        std::snprintf(at, sizeof at, "at %.12g ns: ", double(cycle * sizes.period_ps) / 1e3);
        error = at + what;
        asks = FAILED;
        answers_at = NEVER;
        hold();
    }

    // ---- bus -----------------------------------------------------------------------------------------

    // Offers the next access; the one before has been accepted.
    void offer() {
        const bool more = offered < addresses.size();
        if (command == WRITE) {
            pins.awvalid(more);
            pins.wvalid(more);
            if (more) pins.awaddr(addresses[offered]);
            if (more) pins.wdata(given[offered]);
        } else {
            pins.arvalid(more);
            if (more) pins.araddr(addresses[offered]);
        }
        if (addresses.empty()) finish(DONE);
    }

    // Both channels of a write are offered together, and their ready signals fall together.
    void after_write() { after_access(was.awready && was.wready, was.bvalid, was.bresp); }

    void after_read() {
        if (was.rvalid) results[answers] = was.rdata;
        after_access(was.arready, was.rvalid, was.rresp);
    }

    void after_access(bool accepts, bool answered, uint32_t response) {
        const bool accepted = accepts && offered < addresses.size();
        if (accepted) {
            ++offered;
            offer();
        }
        quiet = accepted || answered ? 0 : quiet + 1;
        if (answered) {
            if (response && refused < 0) refused = addresses[answers];
            if (++answers == addresses.size()) finish(DONE);
        } else if (quiet == PATIENCE) {
            refused = addresses[answers];
            offered = addresses.size();
            offer();
            finish(SILENT);
        }
    }

    void after_reset() {
        if (!--left) finish(DONE);
        if (left == 1) pins.rst(false);
        streams.clear();  // nothing is taken in reset, whatever the edges before it let expect
    }

    // ---- streams ---------------------------------------------------------------------------------------

    void after_delivery() {
        if (streams.empty(watched)) finish(DONE);
        else if (streams.stuck(watched)) finish(SILENT);
    }

    // Results may still come when the last packet into the unit has gone.
    void after_flush(bool results) {
        const bool silent = streams.stuck(COUPLINGS) || streams.stuck(BIASES);
        const bool sent = streams.empty(COUPLINGS) && streams.empty(BIASES);
        if (!silent && (results || !sent)) return;
        streams.clear();
        finish(silent ? SILENT : DONE);
    }

    // ---- array and ADCs ------------------------------------------------------------------------------

    // The cells are at zero; a conversion that is under way goes on.
    void hold() {
        due = NEVER;
        pins.voltages(nullptr);
    }

    void release(bool converting) {
        if (!converting && !stuck()) drdy(false);
        if (!expected) return fail("discharge was released, but no run is expected");
        if (!dacs.ready()) return fail(dacs.error);
        released = cycle;
        due = cycle + settle;
        sampled = available = 0;
        delays.state = flaws.seed * 1000003 + stream;
        const uint64_t vector = stream++ - presumed_from;
        if (!as_presumed(vector)) {
            asks = RELEASED;
            return;
        }
        const uint64_t begins = vector * presumed.samples * sizes.cells;
        available = presumed.samples;
        next_codes = presumed.codes + begins;
        next_voltages = presumed.voltages ? presumed.voltages + begins : nullptr;
    }

    bool as_presumed(uint64_t vector) {
        if (vector >= presumed.vectors || pins.temperature() != presumed.temperature) return false;
        return dacs.hold(presumed.couplings, presumed.biases + vector * sizes.cells);
    }

    void strobe() {
        if (due == NEVER) return fail("CONVST rose while the array was discharged");
        if (cycle != due) {
            const auto off = int64_t(cycle - due);
            return fail("CONVST for sample " + std::to_string(sampled) + " rose " +
                        std::to_string(cycle - released) + " cycles after discharge, " +
                        std::to_string(off > 0 ? off : -off) + " cycles " +
                        (off > 0 ? "late" : "early"));
        }
        due += interval;
        if (available) convert();
        else asks = NEEDED;
    }

    // Puts a sample on the pins, cell 0 at the least significant end.
    void convert() {
        std::fill(packed.begin(), packed.end(), 0);
        const uint64_t mask = (uint64_t{1} << sizes.adc_bits) - 1;
        uint64_t at = 0;
        for (uint32_t i = 0; i < sizes.cells; ++i, at += sizes.adc_bits) {
            const uint64_t code = (uint64_t(next_codes[i]) & mask) << (at % 32);
            packed[at / 32] |= uint32_t(code);
            packed[at / 32 + 1] |= uint32_t(code >> 32);
        }
        pins.adc_data(packed.data());
        if (next_voltages) {
            pins.voltages(next_voltages);
            next_voltages += sizes.cells;
        }
        next_codes += sizes.cells;
        --available;
        if (!stays_at(flaws.silent_from)) {
            const uint64_t delay = flaws.latency_cycles ? delays.next() % (flaws.latency_cycles + 1) : 0;
            if (delay) answers_at = cycle + delay;
            else drdy(true);
        }
        ++sampled;
    }

    void drdy(bool to) { pins.drdy(ready = to); }

    bool stuck() const { return flaws.stuck_from >= 0 && sampled > uint64_t(flaws.stuck_from); }

    bool stays_at(int64_t from) const { return from >= 0 && sampled >= uint64_t(from); }

    // CONVST fell, so DRDY may.
    void let_go() {
        answers_at = NEVER;
        if (!stuck()) drdy(false);
    }

    Pins& pins;
    Outputs was{};
    Event asks = NONE, outcome = NONE;

    Command command = IDLE;
    std::vector<uint32_t> given, addresses;
    uint32_t* results = nullptr;
    uint64_t offered = 0, answers = 0, left = 0;
    uint64_t quiet = 0;  // cycles without an answer

    uint32_t watched = 0;  // the stream that is to be delivered

    bool expected = false;
    uint64_t settle = 0, interval = 0;
    uint64_t released = 0, due = NEVER, answers_at = NEVER;  // clock cycles
    uint64_t sampled = 0, available = 0;
    const int32_t* next_codes = nullptr;
    const double* next_voltages = nullptr;
    Presumed presumed;
    uint64_t presumed_from = 0;
    std::vector<uint32_t> packed;
    bool ready = false;  // what DRDY is to be
    Flaws flaws;
    Draws delays, glitches;
};

}  // namespace thermokron
