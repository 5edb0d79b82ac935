// A unit that CXXRTL has made C++ of, with its surroundings, as a shared library.
//
// A clock cycle is one evaluation at the rising edge and one, which gives the outputs, after it;
// at the falling edge nothing happens in a unit with one clock. CXXRTL keeps a register's old
// value beside its new one, and compares them on every commit to learn whether anything is left to
// do. A design without combinational loops has nothing left to do, so here a commit just takes
// the new values; and a memory port writes at most one word a cycle, which needs no queue. These
// two classes hide CXXRTL's own by name, as they are looked up in the design's namespace first.
// With waveforms, which read the registers through CXXRTL's classes, it is these that are used.
//
// THERMOKRON_DESIGN is the file that CXXRTL has written, THERMOKRON_WAVES whether there are
// waveforms.

#include <cxxrtl/cxxrtl.h>

#if THERMOKRON_WAVES
#include <cxxrtl/cxxrtl_vcd.h>
#include <fstream>
#else
namespace cxxrtl_design {

template <size_t Bits>
struct wire {
    cxxrtl::value<Bits> curr, next;

    template <typename... Chunks>
    explicit constexpr wire(Chunks... chunks) : curr{chunks...}, next{chunks...} {}

    template <class Observer>
    CXXRTL_ALWAYS_INLINE bool commit(Observer&) {
        curr = next;
        return true;
    }
};

template <size_t Width>
struct memory {
    using Word = cxxrtl::value<Width>;

    explicit memory(size_t depth) : data(new Word[depth]()) {}

    Word& operator[](size_t index) { return data[index]; }

    CXXRTL_ALWAYS_INLINE void update(size_t index, const Word& word, const Word& mask, int = 0) {
        if (mask.is_zero()) return;
        pending = true;
        at = index;
        next = data[index].update(word, mask);
    }

    template <class Observer>
    CXXRTL_ALWAYS_INLINE bool commit(Observer&) {
        if (!pending) return false;
        pending = false;
        data[at] = next;
        return true;
    }

    std::unique_ptr<Word[]> data;
    size_t at = 0;
    bool pending = false;
    Word next;
};

}  // namespace cxxrtl_design
#endif

#include THERMOKRON_DESIGN

#include <memory>

#include "player.h"

using thermokron::Codes;
using thermokron::COUPLINGS;
using thermokron::Outputs;
using thermokron::Sizes;

namespace {

using Top = cxxrtl_design::p_thermokron__unit;

// Voltages and signals, in one file.
class Waveform {
public:
#if THERMOKRON_WAVES
    Waveform(Top& top, const char* path, uint32_t cells) : file(path), voltages(cells) {
        vcd.timescale(1, "ps");
        vcd.buffer += "$scope module array $end\n";
        for (uint32_t i = 0; i < cells; ++i)
            vcd.buffer += "$var real 64 " + name(i) + " cell_" + std::to_string(i) + " $end\n";
        vcd.buffer += "$upscope $end\n";
        cxxrtl::debug_items items;
        top.debug_info(&items, nullptr, "thermokron_unit ");
        vcd.add_without_memories(items);
    }

    void hold(const double* values) {
        for (size_t i = 0; i < voltages.size(); ++i) voltages[i] = values ? values[i] : 0.0;
        changed = true;
    }

    // Whether it could be written.
    bool sample(uint64_t time) {
        vcd.sample(time);
        if (changed) {
            char text[64];
            for (size_t i = 0; i < voltages.size(); ++i) {
                std::snprintf(text, sizeof text, "r%.16g ", voltages[i]);
                vcd.buffer += text + name(uint32_t(i)) + "\n";
            }
            changed = false;
        }
        file << vcd.buffer;
        vcd.buffer.clear();
        return bool(file);
    }

    bool flush() { return bool(file.flush()); }

private:
    // which CXXRTL would come to after a hundred thousand signals
    static std::string name(uint32_t cell) { return "~~" + std::to_string(cell); }

    std::ofstream file;
    cxxrtl::vcd_writer vcd;
    std::vector<double> voltages;
    bool changed = true;
#else
    Waveform(Top&, const char*, uint32_t) {}
    void hold(const double*) {}
    bool sample(uint64_t) { return true; }
    bool flush() { return true; }
#endif
};

// How the player reaches a pin. Whether the unit has streams is a matter of its class.
template <class Top>
class PinsOf {
public:
    explicit PinsOf(Top& top) : top(top) {}

    static constexpr bool STREAMS = requires(Top& top) { top.p_m__axis__results__tdata; };

    Outputs outputs() const {
        Outputs now{on(top.p_s__axi__awready), on(top.p_s__axi__wready), on(top.p_s__axi__bvalid),
                on(top.p_s__axi__arready), on(top.p_s__axi__rvalid), on(top.p_irq),
                on(top.p_dac__valid), on(top.p_bias__valid), on(top.p_bias__load),
                on(top.p_discharge), on(top.p_convst), false, false, false, false,
                number(top.p_s__axi__bresp), number(top.p_s__axi__rdata),
                number(top.p_s__axi__rresp)};
        if constexpr (STREAMS) {
            now.couplings_tready = on(top.p_s__axis__couplings__tready);
            now.biases_tready = on(top.p_s__axis__biases__tready);
            now.results_tvalid = on(top.p_m__axis__results__tvalid);
            now.results_tlast = on(top.p_m__axis__results__tlast);
        }
        return now;
    }

    uint32_t temperature() const { return number(top.p_temperature); }

    void coupling_codes(Codes& into) const {
        into.row = number(top.p_dac__row);
        into.first = number(top.p_dac__col);
        into.enable = number(top.p_dac__enable);
        copy(top.p_dac__code, into.codes);
    }

    void bias_codes(Codes& into) const {
        into.first = number(top.p_bias__cell);
        into.enable = number(top.p_bias__enable);
        copy(top.p_bias__code, into.codes);
    }

    void results_tdata(uint32_t* into) const {
        if constexpr (STREAMS) copy(top.p_m__axis__results__tdata, into);
    }

    void tdata(uint32_t stream, const uint32_t* words) {
        if constexpr (STREAMS) {
            auto& couplings = top.p_s__axis__couplings__tdata.data;
            auto& biases = top.p_s__axis__biases__tdata.data;
            std::copy_n(words, std::size(biases), stream == COUPLINGS ? couplings : biases);
        }
    }

    void tvalid(uint32_t stream, bool to) {
        if constexpr (STREAMS)
            (stream == COUPLINGS ? top.p_s__axis__couplings__tvalid
                                 : top.p_s__axis__biases__tvalid).data[0] = to;
    }

    void tlast(uint32_t stream, bool to) {
        if constexpr (STREAMS)
            (stream == COUPLINGS ? top.p_s__axis__couplings__tlast
                                 : top.p_s__axis__biases__tlast).data[0] = to;
    }

    void results_tready(bool to) {
        if constexpr (STREAMS) top.p_m__axis__results__tready.data[0] = to;
    }

    void rst(bool to) { top.p_rst.data[0] = to; }
    void awaddr(uint32_t to) { top.p_s__axi__awaddr.data[0] = to; }
    void awvalid(bool to) { top.p_s__axi__awvalid.data[0] = to; }
    void wdata(uint32_t to) { top.p_s__axi__wdata.data[0] = to; }
    void wstrb(uint32_t to) { top.p_s__axi__wstrb.data[0] = to; }
    void wvalid(bool to) { top.p_s__axi__wvalid.data[0] = to; }
    void bready(bool to) { top.p_s__axi__bready.data[0] = to; }
    void araddr(uint32_t to) { top.p_s__axi__araddr.data[0] = to; }
    void arvalid(bool to) { top.p_s__axi__arvalid.data[0] = to; }
    void rready(bool to) { top.p_s__axi__rready.data[0] = to; }
    void dac_ready(bool to) { top.p_dac__ready.data[0] = to; }
    void bias_ready(bool to) { top.p_bias__ready.data[0] = to; }
    void drdy(bool to) { top.p_drdy.data[0] = to; }
    void adc_data(const uint32_t* words) {
        std::copy_n(words, std::size(top.p_adc__data.data), top.p_adc__data.data);
    }
    void voltages(const double* values) {
        if (waveform) waveform->hold(values);
    }

    std::unique_ptr<Waveform> waveform;

    // An output is a register, or a value computed of some.
    template <class Output>
    static uint32_t number(const Output& output) {
        if constexpr (requires { output.curr; }) return output.curr.data[0];
        else return output.data[0];
    }

    template <class Output>
    static void copy(const Output& output, uint32_t* into) {
        if constexpr (requires { output.curr; }) copy(output.curr, into);
        else std::copy_n(output.data, std::size(output.data), into);
    }

    template <class Output>
    static bool on(const Output& output) {
        return number(output) & 1;
    }

private:
    Top& top;
};

using Pins = PinsOf<Top>;

struct Unit {
    Unit(const Sizes& sizes, const char* waveform) : pins(top), player(pins, sizes) {
        if (waveform) pins.waveform = std::make_unique<Waveform>(top, waveform, sizes.cells);
        settle();
    }

    // A rising edge, and what follows from it.
    void edge() {
        rise();
        player.after_edge();
    }

    void rise() {
        if (top.p_rst.data[0]) {
            top.evaluate<true, true>();
            top.commit();
            top.evaluate<false, true>();  // the pins' reset is a register's, and waits for no clock
        } else {
            top.evaluate<true, false>();
        }
        top.commit();
        settle();
    }

    // Outputs from what the registers hold.
    void settle() { top.evaluate<false, true>(); }

    bool trace() {
        const uint64_t period = player.sizes.period_ps, time = period * player.cycle;
        top.p_clk.data[0] = 1;
        bool good = pins.waveform->sample(time - period / 2);
        top.p_clk.data[0] = 0;
        return pins.waveform->sample(time) && good;
    }

    Top top;
    Pins pins;
    thermokron::Player<Pins> player;
};

}  // namespace

#include "capi.h"

extern "C" {

Unit* unit_open(uint32_t cells, uint32_t coupling_bits, uint32_t bias_bits, uint32_t adc_bits,
                uint32_t dac_lanes, uint32_t stream_bits, uint64_t period_ps,
                const char* waveform) {
    const Sizes sizes{cells, coupling_bits, bias_bits, adc_bits, dac_lanes, stream_bits, period_ps};
    return new Unit(sizes, waveform);
}

// Whether the waveform, if there is one, is complete.
bool unit_close(Unit* unit) {
    const bool good = !unit->pins.waveform || unit->pins.waveform->flush();
    delete unit;
    return good;
}

// Lets the clock run until there is an event, for so many cycles at most; false if the waveform
// could not be written.
bool unit_run(Unit* unit, uint64_t cycles) {
    for (uint64_t cycle = 0; cycle < cycles; ++cycle) {
        if (unit->player.event() != thermokron::NONE) return true;
        unit->edge();
        if (unit->pins.waveform && !unit->trace()) return false;
    }
    return true;
}

// The same with one word of the ADCs for every sample, and no player: how fast the RTL is by
// itself.
void unit_run_free(Unit* unit, uint64_t cycles, const uint32_t* word) {
    unit->pins.adc_data(word);
    for (uint64_t cycle = 0; cycle < cycles; ++cycle) {
        unit->rise();
        unit->pins.drdy(unit->pins.outputs().convst);
    }
}

}  // extern "C"
