; Expressions of whole numbers.

; The value of an expression: of 16 bits in linnum, of 8 in X, of 32, with sign, in number.
byte:   jsr word
        lda linnum+1
        bne quantity
        ldx linnum
        jmp chrgot
word:   jsr expression
        lda number+2
        ora number+3
        bne quantity
        lda number
        sta linnum
        lda number+1
        sta linnum+1
        jmp chrgot

expression:
        jsr term
1:      jsr chrgot
        cmp #t_plus
        beq 2f
        cmp #t_minus
        beq 2f
        rts
2:      pha
        ldx #3
3:      lda number,x
        pha
        dex
        bpl 3b
        jsr chrget
        jsr term
        ldx #0
4:      pla
        sta other,x
        inx
        cpx #4
        bne 4b
        pla
        cmp #t_plus
        beq 5f
        jsr negate
5:      ldx #0
        ldy #4
        clc
6:      lda number,x
        adc other,x
        sta number,x
        inx
        dey
        bne 6b
        beq 1b

term:   jsr factor
1:      jsr chrgot
        cmp #t_times
        beq 2f
        rts
2:      ldx #3
3:      lda number,x
        pha
        dex
        bpl 3b
        jsr chrget
        jsr factor
        ldx #0
4:      pla
        sta other,x
        inx
        cpx #4
        bne 4b
        jsr multiply
        jmp 1b

; number becomes number times other.
multiply:
        ldx #3
1:      lda number,x
        sta product,x
        lda #0
        sta number,x
        dex
        bpl 1b
        ldy #32
2:      asl number
        rol number+1
        rol number+2
        rol number+3
        asl product
        rol product+1
        rol product+2
        rol product+3
        bcc 4f
        clc
        ldx #$fc
3:      lda number+4-256,x
        adc other+4-256,x
        sta number+4-256,x
        inx
        bne 3b
4:      dey
        bne 2b
        rts

negate: sec
        ldx #$fc
1:      lda #0
        sbc number+4-256,x
        sta number+4-256,x
        inx
        bne 1b
        rts

factor: tsx
        cpx #48
        bcc toodeep
        jsr chrgot
        bcc decimal
        cmp #t_minus
        bne 1f
        jsr chrget
        jsr factor
        jmp negate
1:      cmp #t_plus
        bne 2f
        jsr chrget
        jmp factor
2:      cmp #'('
        bne 3f
        jsr chrget
        jsr expression
        jmp closing
3:      cmp #t_peek
        bne 5f
        jsr chrget
        lda linnum              ; POKE has its address there
        pha
        lda linnum+1
        pha
        jsr opening
        jsr word
        jsr closing
        ldy #0
        lda (linnum),y
        sta number
        sty number+1
        sty number+2
        sty number+3
        pla
        sta linnum+1
        pla
        sta linnum
        rts
5:      cmp #'"'
        beq 6f
        jmp syntax
6:      ldx #typeerror
        jmp error
toodeep:
        ldx #memoryerror
        jmp error

; The digits at txtptr.
decimal:
        lda #0
        sta number
        sta number+1
        sta number+2
        sta number+3
        jsr chrgot
1:      bcs 3f
        sbc #'0'-1              ; the carry is clear
        pha
        lda number+3
        cmp #$0c                ; ten times that would not fit
        bcs 4f
        lda #10
        sta other
        lda #0
        sta other+1
        sta other+2
        sta other+3
        jsr multiply
        pla
        clc
        adc number
        sta number
        bcc 2f
        inc number+1
        bne 2f
        inc number+2
        bne 2f
        inc number+3
2:      jsr chrget
        jmp 1b
3:      rts
4:      jmp quantity
