"""Top level of the control plane: one thermodynamic unit behind AXI4-Lite."""

from __future__ import annotations

from amaranth import Module, Mux, Shape, Value, signed, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import ceil_log2

from thermokron.model import PHASES, UnitSpec
from thermokron.rtl.axi import AxiLiteSignature
from thermokron.rtl.biases import Biases
from thermokron.rtl.converter import ConverterPort
from thermokron.rtl.couplings import Couplings
from thermokron.rtl.moments import MomentAccumulator
from thermokron.rtl.registers import RegisterFile
from thermokron.rtl.regmap import register_map
from thermokron.rtl.results import ResultStream
from thermokron.rtl.sampler import Sampler
from thermokron.rtl.sequencer import Sequencer
from thermokron.rtl.streams import AxiStreamSignature

__all__ = ["ThermodynamicUnit"]


def _codes(bits: int, lanes: int) -> Shape:
    """Shape of the codes of a word: one is signed, several are side by side."""
    return signed(bits) if lanes == 1 else unsigned(bits * lanes)


class ThermodynamicUnit(wiring.Component):
    """Registers, coupling and bias loaders, sequencer, sampler, converter port, results.

    One clock, and a synchronous active-high reset. `discharge` and `convst` are in a domain of
    their own, `pins`, with the same clock: they are at rest from the moment that reset is
    asserted, clock or none (see `generate_rtlil`).

    Parameters
    ----------
    spec : UnitSpec
        All sizes, widths and nominal values; cells up to `thermokron.rtl.MAX_CELLS`.

    Members
    -------
    s_axi : In(AxiLiteSignature)
        AXI4-Lite subordinate, as wide as `RegisterMap.address_bits`; docs/registers.md has the
        map.
    irq : Out(1)
        Level, from a register: a run is done or at fault, as far as IRQ_ENABLE lets it through.
    s_axis_couplings, s_axis_biases : In(AxiStreamSignature)
        Packets of couplings, and of a run's bias vectors; of units with streams, as the next one.
    m_axis_results : Out(AxiStreamSignature)
        Packets of a run's results; see `thermokron.rtl.packets`.
    dac_valid, dac_row, dac_col, dac_enable, dac_code : Out, dac_ready : In(1)
        Coupling DACs: upper triangle row by row, `dac_lanes` codes per cycle while valid and ready.
        The first is for column `dac_col`, and at the least significant end; one whose bit of
        `dac_enable` is clear has no DAC.
    bias_valid, bias_cell, bias_enable, bias_code : Out, bias_ready : In(1)
        Input registers of the bias DACs, likewise; while the array settles and is sampled, too.
    bias_load : Out(1)
        The bias DACs take over what is in their input registers; the first cycle of a discharge.
    temperature : Out
        Code of the noise temperature; changes only with START.
    discharge : Out(1)
        High: every cell is held at zero. High whenever the array is not settling or sampled.
    convst : Out(1), drdy : In(1), adc_data : In(cells·adc_bits)
        Converter port, see `ConverterPort`.

    Raises
    ------
    ValueError
        If the control plane cannot be built for the spec.
    """

    def __init__(self, spec: UnitSpec) -> None:
        self.spec = spec
        index = ceil_log2(spec.cells)
        streams = {}
        if spec.stream_bits is not None:
            axis = AxiStreamSignature(spec.stream_bits)
            streams = {
                "s_axis_couplings": In(axis),
                "s_axis_biases": In(axis),
                "m_axis_results": Out(axis),
            }
        super().__init__(
            {
                "s_axi": In(AxiLiteSignature(register_map(spec).address_bits)),
                "irq": Out(1),
                **streams,
                "dac_valid": Out(1),
                "dac_ready": In(1),
                "dac_row": Out(index),
                "dac_col": Out(index),
                "dac_enable": Out(spec.dac_lanes),
                "dac_code": Out(_codes(spec.coupling_bits, spec.dac_lanes)),
                "bias_valid": Out(1),
                "bias_ready": In(1),
                "bias_cell": Out(index),
                "bias_enable": Out(spec.dac_lanes),
                "bias_code": Out(_codes(spec.bias_bits, spec.dac_lanes)),
                "bias_load": Out(1),
                "temperature": Out(spec.temperature_bits),
                "discharge": Out(1, init=1),
                "convst": Out(1),
                "drdy": In(1),
                "adc_data": In(spec.cells * spec.adc_bits),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        spec = self.spec
        m.submodules.registers = registers = RegisterFile(spec)
        m.submodules.coupling_loader = couplings = Couplings(spec)
        m.submodules.bias_loader = biases = Biases(spec)
        m.submodules.sequencer = sequencer = Sequencer(spec)
        m.submodules.sampler = sampler = Sampler(spec)
        m.submodules.converter = converter = ConverterPort(spec)
        m.submodules.moments = moments = MomentAccumulator(spec)

        # ---- host ------------------------------------------------------------------------
        connect(m, flipped(self.s_axi), registers.axi)
        connect(m, registers.couplings0, couplings.bank0)
        connect(m, registers.couplings1, couplings.bank1)
        connect(m, registers.biases_mem, biases.window)
        connect(m, registers.sums, moments.sums)
        connect(m, registers.products, moments.products)
        connect(m, registers.clipped, moments.clipped)
        m.d.comb += [
            sequencer.start.eq(registers.control_start),
            sequencer.abort.eq(registers.control_abort),
            sequencer.clear.eq(registers.control_clear),
            sequencer.biases.eq(registers.biases),
            sequencer.temperature.eq(registers.temperature),
            sequencer.settle.eq(registers.settle),
            sequencer.interval.eq(registers.interval),
            sequencer.samples.eq(registers.samples),
            sequencer.second_moments.eq(registers.mode_second_moments),
            sequencer.stream_biases.eq(registers.mode_stream_biases),
            sequencer.stream_results.eq(registers.mode_stream_results),
            sequencer.spoiled.eq(
                Mux(registers.mode_bank, couplings.spoiled[1], couplings.spoiled[0])
            ),
            registers.start_refused.eq(sequencer.refused),
            registers.status_busy.eq(sequencer.busy),
            registers.status_done.eq(sequencer.done),
            registers.status_fault.eq(sequencer.fault),
            registers.status_phase.eq(sequencer.phase),
            registers.fault_reason.eq(sequencer.reason),
            registers.progress_vector.eq(sequencer.vector),
            registers.progress_sample.eq(sampler.sampled),
            registers.streams_packets.eq(couplings.packets),
            registers.streams_couplings_open.eq(couplings.open),
            registers.streams_biases_open.eq(biases.open),
            registers.streams_spoiled.eq(couplings.spoiled),
            *(
                getattr(registers, f"cycles_{p}").eq(getattr(sequencer, f"cycles_{p}"))
                for p in PHASES
            ),
        ]
        m.d.sync += self.irq.eq(
            (sequencer.done & registers.irq_enable_done)
            | (sequencer.fault & registers.irq_enable_fault)
        )

        # ---- codes to the DACs -------------------------------------------------------------
        starts = sequencer.couplings_start
        m.d.comb += [
            couplings.start.eq(starts),
            couplings.cancel.eq(sequencer.cancel),
            couplings.bank.eq(registers.mode_bank),
            couplings.locked[0].eq(sequencer.busy & ~registers.mode_bank),
            couplings.locked[1].eq(sequencer.busy & registers.mode_bank),
            self.dac_valid.eq(couplings.dac.valid),
            couplings.dac.ready.eq(self.dac_ready),
            self.dac_row.eq(couplings.dac.payload.row),
            self.dac_col.eq(couplings.dac.payload.column),
            self.dac_enable.eq(couplings.dac.payload.enable),
            self.dac_code.eq(Value.cast(couplings.dac.payload.codes)),
            biases.stream_run.eq(starts & registers.mode_stream_biases),
            biases.window_run.eq(starts & ~registers.mode_stream_biases),
            biases.vectors.eq(registers.biases - 1),
            biases.start.eq(sequencer.biases_start),
            biases.locked.eq(sequencer.busy),
            biases.cancel.eq(sequencer.cancel),
            biases.vector.eq(sequencer.next_vector),
            self.bias_valid.eq(biases.dac.valid),
            biases.dac.ready.eq(self.bias_ready),
            self.bias_cell.eq(biases.dac.payload.cell),
            self.bias_enable.eq(biases.dac.payload.enable),
            self.bias_code.eq(Value.cast(biases.dac.payload.codes)),
            self.bias_load.eq(sequencer.bias_load),
            self.temperature.eq(sequencer.temperature_code),
            self.discharge.eq(sequencer.discharge),
        ]

        # ---- samples from the ADCs -----------------------------------------------------------
        m.d.comb += [
            sampler.start.eq(sequencer.sampler_start),
            sampler.cancel.eq(sequencer.cancel),
            sampler.clear.eq(starts | sequencer.bias_load),
            sampler.settle.eq(registers.settle),
            sampler.interval.eq(registers.interval),
            sampler.samples.eq(registers.samples),
            converter.trigger.eq(sampler.trigger),
            converter.cancel.eq(sequencer.cancel),
            self.convst.eq(converter.convst),
            converter.drdy.eq(self.drdy),
            converter.adc_data.eq(self.adc_data),
            converter.codes.ready.eq(moments.samples.ready),
            moments.samples.valid.eq(converter.codes.valid),
            moments.samples.payload.eq(converter.codes.payload),
            moments.first.eq(sequencer.first),
            moments.vector.eq(sequencer.sampled_vector),
            moments.second_moments.eq(registers.mode_second_moments),
            moments.locked.eq(sequencer.busy),
            moments.cancel.eq(sequencer.cancel),
        ]
        if spec.stream_bits is not None:
            self._connect_streams(m, registers, couplings, biases, sequencer, converter, moments)

        # ---- what the sequencer watches ------------------------------------------------------
        m.d.comb += [
            sequencer.couplings_busy.eq(couplings.busy),
            sequencer.biases_busy.eq(biases.busy),
            sequencer.sampler_busy.eq(sampler.running),
            sequencer.converter_busy.eq(~converter.idle),
            sequencer.moments_busy.eq(~moments.idle),
            sequencer.bad_code.eq(couplings.bad_code | biases.bad_code),
            sequencer.adc_timeout.eq(converter.timeout),
            sequencer.adc_stuck.eq(converter.stuck),
            sequencer.dac_timeout.eq(couplings.timeout | biases.timeout),
            sequencer.stream_early.eq(couplings.early | biases.early),
            sequencer.stream_late.eq(couplings.late | biases.late),
            sequencer.trigger.eq(sampler.trigger),
            sequencer.accepted.eq(converter.codes.valid & converter.codes.ready),
        ]
        return m

    def _connect_streams(
        self,
        m: Module,
        registers: RegisterFile,
        couplings: Couplings,
        biases: Biases,
        sequencer: Sequencer,
        converter: ConverterPort,
        moments: MomentAccumulator,
    ) -> None:
        """Packets in and out; a sample whose code leaves is taken over by both at once."""
        m.submodules.results = results = ResultStream(self.spec)
        connect(m, flipped(self.s_axis_couplings), couplings.axis)
        connect(m, flipped(self.s_axis_biases), biases.axis)
        connect(m, results.axis, flipped(self.m_axis_results))
        connect(m, results.reader, moments.reader)
        both = ~sequencer.narrow | results.samples.ready
        m.d.comb += [
            converter.codes.ready.eq(moments.samples.ready & both),
            moments.samples.valid.eq(converter.codes.valid & both),
            results.samples.valid.eq(converter.codes.valid & moments.samples.ready),
            results.samples.payload.eq(converter.codes.payload),
            results.narrow.eq(sequencer.narrow),
            results.last.eq(sequencer.last),
            results.start.eq(sequencer.results_start),
            results.vectors.eq(registers.biases - 1),
            results.second_moments.eq(registers.mode_second_moments),
            sequencer.results_busy.eq(results.busy),
            registers.streams_results_open.eq(results.busy),
        ]
        # Far from the faults' origin, and a cycle later does no harm: the packet ends either way,
        # and no run that begins meanwhile has results yet.
        m.d.sync += results.cancel.eq(sequencer.cancel)
