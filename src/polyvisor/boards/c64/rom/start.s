; Clock, STOP, small calls, and how the machine starts.

; One more sixtieth of a second.
*= $f69b
udtim:  inc time+2
        bne 1f
        inc time+1
        bne 1f
        inc time
1:      lda time+2              ; a day has $4f1a00 of them
        cmp #$00
        lda time+1
        sbc #$1a
        lda time
        sbc #$4f
        bcc 2f
        lda #0
        sta time
        sta time+1
        sta time+2
2:      lda cia1+1
        cmp cia1+1
        bne 2b
        sta stkey
        rts

*= $f6dd
rdtim:  sei
        lda time+2
        ldx time+1
        ldy time
; rdtim goes on here.
*= $f6e4
settim: sei
        sta time+2
        stx time+1
        sty time
        cli
        rts

; Z: STOP is held. Then input and output are the usual ones again.
*= $f6ed
stop:   lda stkey
        cmp #$7f
        bne 1f
        php
        jsr $ffcc
        sta ndx
        plp
1:      rts

readst: lda status
orst:   ora status
        sta status
        rts
setmsg: sta msgflg
        jmp readst
settmo: sta timout
        rts
setlfs: sta la
        stx fa
        sty sa
        rts
setnam: sta fnlen
        stx fnadr
        sty fnadr+1
        rts
; Carry: give it, else set it.
memtop: bcc 1f
        ldx memend
        ldy memend+1
1:      stx memend
        sty memend+1
        rts
membot: bcc 1f
        ldx memstr
        ldy memstr+1
1:      stx memstr
        sty memstr+1
        rts

*= $fce2
reset:  ldx #$ff
        sei
        txs
        cld
        jsr cartridge
        bne 1f
        jmp ($8000)
1:      stx vic+$16
        jsr ioinit
        jsr ramtas
        jsr restor
        jsr cint
        cli
        jmp ($a000)
; Z: there is a cartridge that wants to start itself.
*= $fd02
cartridge:
        ldx #5
1:      lda signature-1,x
        cmp $8004-1,x
        bne 2f
        dex
        bne 1b
2:      rts
signature:
        .byte $c3, $c2, $cd, $38, $30
; The vectors as they begin.
*= $fd15
restor: ldx #<usual
        ldy #>usual
        clc
; Carry: the vectors are copied to X and Y, else from there.
vector: stx memuss
        sty memuss+1
        ldy #usualend-usual-1
1:      lda cinv,y
        bcs 2f
        lda (memuss),y
2:      sta (memuss),y          ; into RAM below, if these are the usual ones
        sta cinv,y
        dey
        bpl 1b
        rts
*= $fd30
usual:  .word interrupt, breakpoint, donmi, open, close, chkin, chkout, clrchn, chrin, chrout, stop, getin, clall
        .word breakpoint, doload, dosave
usualend:
; Clear what the system uses, and find where RAM ends.
*= $fd50
ramtas: lda #0
        tay
1:      sta $0002,y
        sta $0200,y
        sta $0300,y
        iny
        bne 1b
        ldx #<tapebuffer
        ldy #>tapebuffer
        stx $b2
        sty $b3
        lda #>$0400
        sta sal+1
        ldy #0
        sty sal
2:      lda (sal),y             ; a byte of each page can hold two values
        tax
        lda #$55
        sta (sal),y
        cmp (sal),y
        bne 3f
        asl a
        sta (sal),y
        cmp (sal),y
        bne 3f
        txa
        sta (sal),y
        inc sal+1
        lda sal+1
        cmp #>$d000
        bne 2b
        beq 4f
3:      txa
        sta (sal),y
4:      ldy sal+1               ; the low bytes are 0 already
        sty memend+1
        lda #>$0800
        sta memstr+1
        lda #>$0400
        sta hibase
        rts

*= $fda3
ioinit: lda #$7f
        sta cia1+$0d
        sta cia2+$0d
        sta cia1
        lda #$08
        sta cia1+$0e
        sta cia2+$0e
        sta cia1+$0f
        sta cia2+$0f
        ldx #0
        stx cia1+3
        stx cia2+3
        stx sid+$18
        dex
        stx cia1+2
        lda #$07
        sta cia2
        lda #$3f
        sta cia2+2
        lda #$e7
        sta r6510
        lda #$2f
        sta d6510
; Sixty interrupts a second.
settimer:
        ldx #<17045             ; 1022727 cycles a second (NTSC)
        ldy #>17045
        lda palnts
        beq 1f
        ldx #<16421             ; 985248 (PAL)
        ldy #>16421
1:      stx cia1+4
        sty cia1+5
        lda #$81
        sta cia1+$0d
        lda #$11
        sta cia1+$0e
        rts

; Start the screen, and see which video chip it is: that for PAL has lines beyond 263.
cint:   jsr startscreen
1:      bit vic+$11
        bpl 1b
        ldx #0
2:      lda vic+$12
        cmp #8
        bcc 3f
        bit vic+$11
        bpl 4f
        inx
        bne 4f
3:      bit vic+$11
        bmi 2b
4:      stx palnts
        jmp settimer

*= $fe43
nmi:    sei
        jmp (nminv)
donmi:  pha
        txa
        pha
        tya
        pha
        lda #$7f
        sta cia2+$0d
        ldy cia2+$0d
        bmi endnmi              ; not RESTORE
        jsr cartridge
        bne 1f
        jmp ($8002)
1:      jsr $ffea
        jsr $ffe1
        bne endnmi
; BRK, and RESTORE while STOP is held: all begins again, but for the program.
*= $fe66
breakpoint:
        jsr restor
        jsr ioinit
        jsr cint
        jmp ($a002)
*= $febc
endnmi: pla
        tay
        pla
        tax
        pla
        rti

*= $ff48
irq:    pha
        txa
        pha
        tya
        pha
        tsx
        lda stack+4,x
        and #$10
        beq 1f
        jmp (cbinv)
1:      jmp (cinv)

*= $ff5b
        jmp cint
*= $ff81
        jmp cint
        jmp ioinit
        jmp ramtas
        jmp restor
        jmp vector
        jmp setmsg
        jmp second
        jmp tksa
        jmp memtop
        jmp membot
        jmp scankeys
        jmp settmo
        jmp acptr
        jmp ciout
        jmp untlk
        jmp unlsn
        jmp listen
        jmp talk
        jmp readst
        jmp setlfs
        jmp setnam
        jmp (iopen)
        jmp (iclose)
        jmp (ichkin)
        jmp (ickout)
        jmp (iclrch)
        jmp (ibasin)
        jmp (ibsout)
        jmp load
        jmp save
        jmp settim
        jmp rdtim
        jmp (istop)
        jmp (igetin)
        jmp (iclall)
        jmp udtim
        jmp screen
        jmp plot
        jmp iobase
*= $fffa
        .word nmi, reset, irq
