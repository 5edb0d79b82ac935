// Main program of a simulated unit in Verilator: the clock, the unit's surroundings, and cocotb.
//
// A clock that is driven through VPI costs a callback, a queued write and a second evaluation of
// the design at every edge; here an edge is an assignment and one evaluation, and the player sets
// the pins after it. While a command is under way nothing is asked of cocotb; when there is an
// event, the input `wake` changes, for which the server waits. Otherwise the order of regions
// within a time step is that of IEEE 1800-2012, 4.4, as cocotb expects it.
//
// Arguments: [--trace --trace-file FILE]; the environment has the unit's sizes.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

#include "Vtop.h"
#include "verilated.h"
#include "verilated_vpi.h"

#if VM_TRACE_FST
#include "verilated_fst_c.h"
using Trace = VerilatedFstC;
#elif VM_TRACE
#include "verilated_vcd_c.h"

// Ends the simulator when the disk is full: Verilator says so, and then waits for itself for ever.
class VcdFile final : public VerilatedVcdFile {
    ssize_t write(const char* bytes, ssize_t count) override {
        const ssize_t written = VerilatedVcdFile::write(bytes, count);
        if (written < 0 && errno != EAGAIN && errno != EINTR) {
            std::fprintf(stderr, "the waveform could not be written: %s\n", std::strerror(errno));
            std::_Exit(1);
        }
        return written;
    }
};

class Trace final : public VerilatedVcdC {
public:
    Trace() : VerilatedVcdC(&file) {}  // which closes it at its own end
    ~Trace() override { close(); }

private:
    VcdFile file;
};
#endif

#include "player.h"
#include "voltages.h"

using thermokron::Codes;
using thermokron::COUPLINGS;
using thermokron::Outputs;
using thermokron::Sizes;

extern "C" void vlog_startup_routines_bootstrap();

namespace {

// How the player reaches a pin. Whether the unit has streams is a matter of its class.
template <class Top>
class PinsOf {
public:
    explicit PinsOf(Top& top) : top(top) {}

    static constexpr bool STREAMS = requires(Top& top) { top.m_axis_results_tdata; };

    Outputs outputs() const {
        Outputs now{top.s_axi_awready != 0, top.s_axi_wready != 0, top.s_axi_bvalid != 0,
                top.s_axi_arready != 0, top.s_axi_rvalid != 0, top.irq != 0, top.dac_valid != 0,
                top.bias_valid != 0, top.bias_load != 0, top.discharge != 0, top.convst != 0,
                false, false, false, false, top.s_axi_bresp, top.s_axi_rdata, top.s_axi_rresp};
        if constexpr (STREAMS) {
            now.couplings_tready = top.s_axis_couplings_tready != 0;
            now.biases_tready = top.s_axis_biases_tready != 0;
            now.results_tvalid = top.m_axis_results_tvalid != 0;
            now.results_tlast = top.m_axis_results_tlast != 0;
        }
        return now;
    }

    uint32_t temperature() const { return top.temperature; }

    void coupling_codes(Codes& into) const {
        into.row = top.dac_row;
        into.first = top.dac_col;
        into.enable = top.dac_enable;
        copy(top.dac_code, into.codes);
    }

    void bias_codes(Codes& into) const {
        into.first = top.bias_cell;
        into.enable = top.bias_enable;
        copy(top.bias_code, into.codes);
    }

    void results_tdata(uint32_t* into) const {
        if constexpr (STREAMS) copy(top.m_axis_results_tdata, into);
    }

    void tdata(uint32_t stream, const uint32_t* words) {
        if constexpr (STREAMS)
            assign(stream == COUPLINGS ? top.s_axis_couplings_tdata : top.s_axis_biases_tdata, words);
    }

    void tvalid(uint32_t stream, bool to) {
        if constexpr (STREAMS)
            (stream == COUPLINGS ? top.s_axis_couplings_tvalid : top.s_axis_biases_tvalid) = to;
    }

    void tlast(uint32_t stream, bool to) {
        if constexpr (STREAMS)
            (stream == COUPLINGS ? top.s_axis_couplings_tlast : top.s_axis_biases_tlast) = to;
    }

    void results_tready(bool to) {
        if constexpr (STREAMS) top.m_axis_results_tready = to;
    }

    void rst(bool to) { top.rst = to; }
    void awaddr(uint32_t to) { top.s_axi_awaddr = to; }
    void awvalid(bool to) { top.s_axi_awvalid = to; }
    void wdata(uint32_t to) { top.s_axi_wdata = to; }
    void wstrb(uint32_t to) { top.s_axi_wstrb = to; }
    void wvalid(bool to) { top.s_axi_wvalid = to; }
    void bready(bool to) { top.s_axi_bready = to; }
    void araddr(uint32_t to) { top.s_axi_araddr = to; }
    void arvalid(bool to) { top.s_axi_arvalid = to; }
    void rready(bool to) { top.s_axi_rready = to; }
    void dac_ready(bool to) { top.dac_ready = to; }
    void bias_ready(bool to) { top.bias_ready = to; }
    void drdy(bool to) { top.drdy = to; }
    void adc_data(const uint32_t* words) { assign(top.adc_data, words); }
    void voltages(const double* values) { cells.hold(values); }

private:
    // as wide as the pins are: a number of up to 64 bits, or an array of words
    template <class Pin>
    static void assign(Pin& pin, const uint32_t* words) {
        if constexpr (!std::is_integral_v<Pin>) std::copy_n(words, std::size(pin.m_storage), pin.m_storage);
        else if constexpr (sizeof(Pin) > 4) pin = words[0] | uint64_t(words[1]) << 32;
        else pin = Pin(words[0]);
    }

    template <class Pin>
    static void copy(const Pin& pin, uint32_t* into) {
        if constexpr (!std::is_integral_v<Pin>) {
            std::copy_n(pin.m_storage, std::size(pin.m_storage), into);
        } else {
            into[0] = uint32_t(pin);
            if constexpr (sizeof(Pin) > 4) into[1] = uint32_t(pin >> 32);
        }
    }

    Top& top;
    thermokron::Voltages cells;
};

using Pins = PinsOf<Vtop>;

struct Unit {
    Unit(Vtop& top, const Sizes& sizes) : pins(top), player(pins, sizes) {}

    Pins pins;
    thermokron::Player<Pins> player;
    bool running = false;
};

// Callbacks may change what others watch, so until none is called.
void settle() {
    while (VerilatedVpi::callValueCbs()) {
    }
}

// Whether anything waits for something to happen: cocotb does until its tests have ended.
bool awaited() {
    return VerilatedVpi::cbNextDeadline() != ~QData{0} || VerilatedVpi::hasCbs(cbValueChange) ||
           VerilatedVpi::hasCbs(cbNextSimTime);
}

// Everything that happens without time passing.
void run_time_step(Vtop& top) {
    do {
        do {
            top.eval_step();
            VerilatedVpi::clearEvalNeeded();
            VerilatedVpi::doInertialPuts();
            settle();
        } while (VerilatedVpi::evalNeeded());
        VerilatedVpi::callCbs(cbReadWriteSynch);
        VerilatedVpi::doInertialPuts();
        settle();
    } while (VerilatedVpi::evalNeeded());
    top.eval_end_step();
    VerilatedVpi::callCbs(cbReadOnlySynch);
}

std::unique_ptr<Unit> unit;

}  // namespace

#include "capi.h"

extern "C" {

Unit* player_unit() { return unit.get(); }

// Lets the clock run until there is an event, with which `wake` changes.
void player_run(Unit* unit) { unit->running = true; }

}  // extern "C"

int main(int argc, char** argv) {
    std::string trace_file;
    for (int i = 1; i + 1 < argc; ++i)
        if (!std::strcmp(argv[i], "--trace-file")) trace_file = argv[i + 1];
    const Sizes sizes = thermokron::sizes_of_environment();
    const uint64_t half_period = sizes.period_ps / 2;

    VerilatedContext& context = *Verilated::threadContextp();
    context.commandArgs(argc, argv);
    context.fatalOnError(true);
    auto top = std::make_unique<Vtop>("");
    Verilated::fatalOnVpiError(false);  // cocotb asks for objects that may not exist
    unit = std::make_unique<Unit>(*top, sizes);
#if VM_TRACE
    std::unique_ptr<Trace> trace;
    context.traceEverOn(true);
    if (!trace_file.empty()) {
        trace = std::make_unique<Trace>();
        top->trace(trace.get(), 99);
        trace->open(trace_file.c_str());
    }
#endif

    vlog_startup_routines_bootstrap();
    VerilatedVpi::callCbs(cbStartOfSimulation);
    settle();

    uint64_t next_edge = half_period;
    while (!context.gotFinish()) {
        run_time_step(*top);
        if (!awaited()) break;
        while (unit->running) {  // nobody but the server waits, and for nothing but `wake`
            context.time(next_edge);
            next_edge += half_period;
            top->clk = !top->clk;
            top->eval();
            if (top->clk) {
                unit->player.after_edge();
                unit->running = unit->player.event() == thermokron::NONE;
                if (!unit->running) top->wake = !top->wake;
            }
#if VM_TRACE
            if (trace) {
                top->eval();  // with the pins as they are now
                trace->dump(context.time());
            }
#endif
            if (!unit->running) run_time_step(*top);
        }
        context.time(std::min<uint64_t>(next_edge, VerilatedVpi::cbNextDeadline()));
        VerilatedVpi::callCbs(cbNextSimTime);
        VerilatedVpi::callTimedCbs();
        settle();
        if (context.time() == next_edge) {
            top->clk = !top->clk;
            next_edge += half_period;
            settle();
        }
    }

    top->final();
    VerilatedVpi::callCbs(cbEndOfSimulation);
#if VM_TRACE
    if (trace) trace->close();
#endif
    unit.reset();
    return context.errorCount() > 0;
}
