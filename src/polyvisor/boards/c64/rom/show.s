; What is shown: PRINT, numbers, messages, errors, LIST.

doprint:
        jsr chrgot
        beq printend
        cmp #';'
        beq 2f
        cmp #','
        beq 1f
        cmp #'"'
        beq printstring
        cmp #t_chr
        beq printcharacter
        jsr expression
        jsr showsigned
        lda #space
        jsr $ffd2
        jmp doprint
1:      lda #space              ; every ten places
        jsr $ffd2
        jsr column
        beq 2f
        cmp #10
        beq 2f
        cmp #20
        beq 2f
        cmp #30
        bne 1b
2:      jsr chrget
        bne doprint
        rts
printend:
        lda #return
        jmp $ffd2
column: sec
        jsr $fff0
        tya
        sec
1:      sbc #40
        bcs 1b
        adc #40
        rts
printstring:
        inc txtptr
        bne 1f
        inc txtptr+1
1:      ldy #0
        lda (txtptr),y
        beq 2f                  ; the closing quotes may be missing
        cmp #'"'
        beq 3f
        jsr $ffd2
        jmp printstring
2:      jmp doprint
3:      jsr chrget
        jmp doprint
printcharacter:
        jsr chrget
        jsr opening
        jsr byte
        txa
        pha
        jsr closing
        pla
        jsr $ffd2
        jmp doprint

showsigned:
        lda number+3
        bpl 1f
        jsr negate
        lda #'-'
        .byte $2c
1:      lda #space
        jsr $ffd2
        jmp showdigits
; A (high byte) and X.
shownumber:
        stx number
        sta number+1
        lda #0
        sta number+2
        sta number+3
showdigits:
        lda #0
        sta length
1:      lda #0                  ; divided by ten; what remains is a digit
        ldy #32
2:      asl number
        rol number+1
        rol number+2
        rol number+3
        rol a
        cmp #10
        bcc 3f
        sbc #10
        inc number
3:      dey
        bne 2b
        pha
        inc length
        lda number
        ora number+1
        ora number+2
        ora number+3
        bne 1b
4:      pla
        ora #'0'
        jsr $ffd2
        dec length
        bne 4b
        rts

; The text at A (low byte) and Y: until a character with bit 7.
show:   sta textend
        sty textend+1
        ldy #0
1:      lda (textend),y
        php
        and #$7f
        jsr $ffd2
        iny
        plp
        bpl 1b
        rts
; The text at A and Y: until a zero.
showzero:
        sta textend
        sty textend+1
        ldy #0
1:      lda (textend),y
        beq 2f
        jsr $ffd2
        iny
        bne 1b
2:      rts

; Error X; with bit 7, none.
showerror:
        txa
        bmi 4f
        pha
        jsr $ffcc
        lda #return
        jsr $ffd2
        lda #'?'
        jsr $ffd2
        lda #<errortexts
        sta textend
        lda #>errortexts
        sta textend+1
        pla
        ldx #0
        ldy #0
1:      cmp errornumbers,x
        beq 3f
        pha
        lda errornumbers,x
        beq 2f                  ; unknown
        pla
        inx
        pha
5:      lda (textend),y
        inc textend
        bne 6f
        inc textend+1
6:      asl a
        bcc 5b
        pla
        jmp 1b
2:      pla
3:      lda textend
        ldy textend+1
        jsr show
        lda #<errortext
        ldy #>errortext
        jsr show
showplace:
        ldx curlin+1
        inx
        beq 4f                  ; no program
        lda #<intext
        ldy #>intext
        jsr show
        lda curlin+1
        ldx curlin
        jsr shownumber
4:      jmp ready

; LIST, with a line or first-last.
dolist: lda #0
        sta linnum
        sta linnum+1
        lda #$ff
        sta other
        sta other+1
        jsr chrgot
        beq 3f
        bcs 1f
        jsr readlinenumber
        lda linnum
        sta other
        lda linnum+1
        sta other+1
        jsr chrgot
        beq 3f
1:      lda #t_minus
        jsr expect
        lda linnum
        pha
        lda linnum+1
        pha
        lda #$ff
        sta linnum
        sta linnum+1
        jsr chrgot
        beq 2f
        bcs listsyntax
        jsr readlinenumber
2:      lda linnum
        sta other
        lda linnum+1
        sta other+1
        pla
        sta linnum+1
        pla
        sta linnum
3:      jsr chrgot
        bne listsyntax
        jsr findline
listline:
        ldy #1
        lda (linebelow),y
        beq 3f
        jsr $ffe1
        bne 1f
        jmp dostop
1:      ldy #2
        lda (linebelow),y
        tax
        iny
        lda (linebelow),y
        cpx other
        pha
        sbc other+1
        pla
        bcc 2f
        cpx other               ; behind the last, or just that
        bne 3f
        cmp other+1
        bne 3f
2:      pha
        lda #return
        jsr $ffd2
        pla
        jsr shownumber
        lda #space
        jsr $ffd2
        jsr listtext
        ldy #0
        lda (linebelow),y
        tax
        iny
        lda (linebelow),y
        stx linebelow
        sta linebelow+1
        jmp listline
3:      lda #return
        jmp $ffd2
listsyntax:
        jmp syntax

listtext:
        ldy #0
        sty quoted
        ldy #4
1:      lda (linebelow),y
        beq 4f
        cmp #'"'
        bne 2f
        lda quoted
        eor #$80
        sta quoted
        lda #'"'
2:      cmp #$80
        bcc 3f
        cmp #$cc
        bcs 3f
        bit quoted
        bmi 3f
        jsr showword
        iny
        bne 1b
3:      jsr $ffd2
        iny
        bne 1b
4:      rts

; The word of token A; Y is kept.
showword:
        and #$7f
        tax
        tya
        pha
        lda #<words
        sta textend
        lda #>words
        sta textend+1
        ldy #0
        inx
1:      dex
        beq 3f
2:      lda (textend),y
        inc textend
        bne 4f
        inc textend+1
4:      asl a
        bcc 2b
        bcs 1b
3:      lda textend
        ldy textend+1
        jsr show
        pla
        tay
        rts
