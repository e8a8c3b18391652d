; The serial bus. Its lines are not driven: the drive takes bytes and commands from registers (see drive.py).

*= $ed09
talk:   ora #$40
        .byte $2c               ; bit absolute: the next instruction is its operand
listen: ora #$20
        pha
        jsr sendlast
        pla
; A byte is sent as a command.
attention:
        sta drivedata
        lda #1
; Let the drive do A, and keep what is wrong. X and Y are kept.
drive:  sta drivecommand
        lda drivehere
        cmp #$56
        bne absent
        lda drivestatus
orstatus:
        ora status
        sta status
        clc
        rts
absent: lda #$80
        bne orstatus

; The byte that was kept back is the last.
sendlast:
        bit c3po
        bpl 1f
        lda #0
        sta c3po
        lda bsour
        sta drivedata
        lda #3
        bne drive
1:      rts

*= $edb9
second: jmp attention
*= $edbe
        clc                     ; ATN is let go: nothing to do
        rts
*= $edc7
tksa:   jmp attention
*= $edcc
        clc
        rts

; Send a byte: it is kept back until it is known whether it is the last.
*= $eddd
ciout:  jmp keepbyte
*= $edef
untlk:  lda #$5f
        jmp attention
*= $edfe
unlsn:  jsr sendlast
        lda #$3f
        jmp attention
*= $ee13
acptr:  lda #4
        jsr drive
        lda drivehere
        cmp #$56
        bne 1f
        lda drivedata
1:      clc
        rts

keepbyte:
        bit c3po
        bmi 2f
        pha
        lda #$80
        sta c3po
1:      pla
        sta bsour
        clc
        rts
2:      pha
        lda bsour
        sta drivedata
        lda #2
        jsr drive
        jmp 1b
serialend:
