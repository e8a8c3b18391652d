; What happens sixty times a second: clock, cursor, keyboard.

*= $ea31
interrupt:
        jsr $ffea
        lda blnsw
        bne 2f
        dec blnct
        bne 2f
        lda #20
        sta blnct
        lda blnon
        beq 1f
        jsr hidecursor
        jmp 2f
1:      inc blnon
        ldy pntr
        lda (user),y
        sta gdcol
        lda color
        sta (user),y
        lda (pnt),y
        sta gdbln
        eor #$80
        sta (pnt),y
2:      jsr scankeys
        jmp acknowledge
*= $ea7e
acknowledge:
        lda cia1+$0d
; acknowledge goes on here.
*= $ea81
        pla
        tay
        pla
        tax
        pla
        rti

; Which key is held: numbers are eight times the line of port A, and the line of port B.
*= $ea87
scankeys:
        lda #0
        sta shflag
        ldy #64
        sty sfdx
        sta cia1
        ldx cia1+1
        cpx #$ff
        beq nokey
        lda #<unshifted
        sta keytab
        lda #>unshifted
        sta keytab+1
        ldy #0
        lda #$fe
        sta cia1
1:      ldx #8
        pha
2:      lda cia1+1
        cmp cia1+1
        bne 2b
3:      lsr a
        bcs 6f
        pha
        lda (keytab),y
        cmp #5                  ; SHIFT, C= and CTRL have what is their bit in shflag as their character
        bcs 4f
        cmp #3
        beq 4f
        ora shflag
        sta shflag
        bpl 5f
4:      sty sfdx
5:      pla
6:      iny
        dex
        bne 3b
        pla
        sec
        rol a
        sta cia1
        cpy #64
        bne 1b
nokey:  jmp (keylog)

chosen: ldy sfdx
        lda (keytab),y
        tax
        cpy lstx
        beq held
        ldy #16
        sty delay
        bne newkey
held:   and #$7f
        bit rptflg
        bmi repeats
        bvs keysdone
        ldy #4
1:      cmp repeating,y
        beq repeats
        dey
        bpl 1b
        bmi keysdone
repeats:
        ldy delay
        beq 2f
        dec delay
        bne keysdone
2:      dec kount
        bne keysdone
        ldy #4
        sty kount
        ldy ndx
        dey
        bpl keysdone
newkey: ldy sfdx
        sty lstx
        ldy shflag
        sty lstshf
        cpx #$ff
        beq keysdone
        txa
        ldx ndx
        cpx xmax
        bcs keysdone
        sta keyd,x
        inx
        stx ndx
keysdone:
        lda #$7f                ; the line of STOP
        sta cia1
        rts
repeating:
        .byte $14, $20, $1d, $11, $20

; The table by shflag; SHIFT and C= together change the set of characters.
*= $eb48
choosetable:
        lda shflag
        cmp #3
        bne 1f
        cmp lstshf
        beq keysdone
        lda mode
        bmi 2f
        lda vic+$18
        eor #2
        sta vic+$18
        jmp 2f
1:      asl a
        cmp #8
        bcc 3f
        lda #6
3:      tax
        lda tables,x
        sta keytab
        lda tables+1,x
        sta keytab+1
2:      jmp chosen

*= $eb79
tables: .word unshifted, shifted, commodore, control4
; By the key's number.
*= $eb81
unshifted:
        .byte $14, $0d, $1d, $88, $85, $86, $87, $11  ; DEL RETURN RIGHT F7 F1 F3 F5 DOWN
        .byte $33, $57, $41, $34, $5a, $53, $45, $01  ; 3 W A 4 Z S E SHIFT
        .byte $35, $52, $44, $36, $43, $46, $54, $58  ; 5 R D 6 C F T X
        .byte $37, $59, $47, $38, $42, $48, $55, $56  ; 7 Y G 8 B H U V
        .byte $39, $49, $4a, $30, $4d, $4b, $4f, $4e  ; 9 I J 0 M K O N
        .byte $2b, $50, $4c, $2d, $2e, $3a, $40, $2c  ; + P L - . : @ ,
        .byte $5c, $2a, $3b, $13, $01, $3d, $5e, $2f  ; pound * ; HOME SHIFT = arrow-up /
        .byte $31, $5f, $04, $32, $20, $02, $51, $03  ; 1 arrow-left CTRL 2 space C= Q STOP
        .byte $ff
*= $ebc2
shifted:
        .byte $94, $8d, $9d, $8c, $89, $8a, $8b, $91
        .byte $23, $d7, $c1, $24, $da, $d3, $c5, $01
        .byte $25, $d2, $c4, $26, $c3, $c6, $d4, $d8
        .byte $27, $d9, $c7, $28, $c2, $c8, $d5, $d6
        .byte $29, $c9, $ca, $30, $cd, $cb, $cf, $ce
        .byte $db, $d0, $cc, $dd, $3e, $5b, $ba, $3c
        .byte $a9, $c0, $5d, $93, $01, $3d, $de, $3f
        .byte $21, $5f, $04, $22, $a0, $02, $d1, $83
        .byte $ff
*= $ec03
commodore:
        .byte $94, $8d, $9d, $8c, $89, $8a, $8b, $91
        .byte $96, $b3, $b0, $97, $ad, $ae, $b1, $01
        .byte $98, $b2, $ac, $99, $bc, $bb, $a3, $bd
        .byte $9a, $b7, $a5, $9b, $bf, $b4, $b8, $be
        .byte $29, $a2, $b5, $30, $a7, $a1, $b9, $aa
        .byte $a6, $af, $b6, $dc, $3e, $5b, $a4, $3c
        .byte $a8, $df, $5d, $93, $01, $3d, $de, $3f
        .byte $81, $5f, $04, $95, $a0, $02, $ab, $03
        .byte $ff
*= $ec78
control4:
        .byte $ff, $ff, $ff, $ff, $ff, $ff, $ff, $ff
        .byte $1c, $17, $01, $9f, $1a, $13, $05, $ff
        .byte $9c, $12, $04, $1e, $03, $06, $14, $18
        .byte $1f, $19, $07, $9e, $02, $08, $15, $16
        .byte $12, $09, $0a, $92, $0d, $0b, $0f, $0e
        .byte $ff, $10, $0c, $ff, $ff, $1b, $ff, $ff
        .byte $1c, $ff, $1d, $ff, $ff, $1f, $1e, $ff
        .byte $90, $06, $ff, $05, $ff, $ff, $11, $ff
        .byte $ff

; The video chip's registers: 24 lines of 40 characters and one more, screen at $0400, characters at $1000 (ROM).
*= $ecb9
chipvalues:
        .byte 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
        .byte $9b, $37, 0, 0, 0, $08, 0, $14, $0f, 0, 0, 0, 0, 0, 0
        .byte $0e, $06, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6, 7, 12
chipvaluesend:
*= $ecf0
rowlow: .byte $00, $28, $50, $78, $a0, $c8, $f0, $18, $40, $68, $90, $b8, $e0
        .byte $08, $30, $58, $80, $a8, $d0, $f8, $20, $48, $70, $98, $c0
