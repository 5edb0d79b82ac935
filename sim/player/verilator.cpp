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
using Trace = VerilatedVcdC;
#endif

#include "player.h"
#include "voltages.h"

using thermokron::Outputs;
using thermokron::Sizes;

extern "C" void vlog_startup_routines_bootstrap();

namespace {

// How the player reaches a pin.
class Pins {
public:
    explicit Pins(Vtop& top) : top(top) {}

    Outputs outputs() const {
        return {top.s_axi_awready != 0, top.s_axi_wready != 0, top.s_axi_bvalid != 0,
                top.s_axi_arready != 0, top.s_axi_rvalid != 0, top.irq != 0, top.dac_valid != 0,
                top.bias_valid != 0, top.discharge != 0, top.convst != 0, top.s_axi_bresp,
                top.s_axi_rdata, top.s_axi_rresp, top.dac_row, top.dac_col, top.dac_code,
                top.bias_cell, top.bias_code};
    }

    uint32_t temperature() const { return top.temperature; }

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

    Vtop& top;
    thermokron::Voltages cells;
};

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
